"""The R1 recipe in its smallest size: one run, killed in each kind of stage, which the same command completes.

Nodes of kinds that run elsewhere are left out (`parts.build_r1`), evaluations too. The reward of accuracy is a coin's,
for a base of half a minute's pretraining solves nothing.
"""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
N_PROMPTS = 96  # more than a sampler has under way at once: the first are kept while the last have not begun
RL_STEPS, LATE_STEPS, STEPS_A_BATCH, PROMPTS_A_STEP = 16, 8, 2, 2
RL_BATCHES = RL_STEPS // STEPS_A_BATCH
SMALL = (
    *("job=r1", "job._target_=tests.e2e.parts.build_r1", "plugins=[tests.e2e]"),
    "reward.components.accuracy._target_=tests.e2e.parts.EvenText",
    *(
        "data.documents=3000",
        "data.validation_documents=40",
        f"data.train_prompts={N_PROMPTS}",
        "data.heldout_prompts=4",
    ),
    *("stage.v3_base.steps=120", "stage.v3_base.validation_rows=4", "stage.v3_base.workers=1"),
    *("stage.qwen_base.steps=10", "stage.qwen_base.validation_rows=4", "stage.qwen_base.workers=1"),
    *(
        "rl.steps=4",
        f"rl.minibatches_per_rollout={STEPS_A_BATCH}",
        f"rl.prompts_per_step={PROMPTS_A_STEP}",
        "rl.group_size=4",
        "rl.checkpoint_every=1",
    ),
    *("stage.dev2.steps=4", f"stage.r1.steps={RL_STEPS}", f"stage.r1.late_steps={LATE_STEPS}"),
    *("stage.cold_start.sampling.n=2", "stage.rejection.sampling.n=2", "stage.rejection.most_prompts=48"),
    *("stage.dev1.epochs=6", "stage.dev1.chats_per_step=4", "stage.dev3.epochs=2", "stage.dev3.chats_per_step=4"),
    "stage.distill_qwen.epochs=2",
    "stage.mix.shares={reasoning:1,general:1}",
    *("stage.helpful_pairs.most_prompts=32", "stage.safety_labels.most_prompts=32"),
    *(
        "stage.helpful_rm.prompts_per_step=4",
        "stage.helpful_rm.checkpoint_every=1",
        "stage.safety_rm.prompts_per_step=16",
    ),
    *("stage.distill_qwen.chats_per_step=4", "stage.distill_qwen.checkpoint_every=1"),
)

# Node -> what it leaves.
OUTPUTS = {
    **dict.fromkeys(("r1_zero", "dev2", "r1"), "policy"),
    **dict.fromkeys(("dev1", "dev3", "distill_qwen"), "tuned"),
    **dict.fromkeys(("cold_start", "rejection", "v3_data", "mix"), "chats"),
    **dict.fromkeys(("helpful_rm", "safety_rm"), "reward"),
    **dict.fromkeys(("v3_base", "qwen_base"), "base"),
}


def sampled(run: Run, node: str) -> list[str]:
    """Ids of the prompts whose responses a sampling stage has kept so far."""
    lines = [
        line for file in run.directory.glob(f"state/{node}-*/samples.jsonl") for line in file.read_text().splitlines()
    ]
    return re.findall(r'^\{"id": "([^"]+)"', "\n".join(lines), re.MULTILINE)


def saved_steps(run: Run, node: str) -> int:
    """Of a training's newest checkpoint; 0 before there is one."""
    pointers = list(run.directory.glob(f"state/{node}-*/LATEST"))
    return int(pointers[0].read_text().split("_")[1]) if pointers else 0


def kill_driver(run: Run) -> None:
    run.processes()
    assert run.process is not None
    run.process.kill()
    assert run.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed_at() -> dict[str, Any]:
    """How far each stage was when it was killed."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_dir: Path, killed_at: dict[str, Any]) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("runs"), "r1", SMALL, ray_dir)
    run.start()
    try:
        run.until(lambda: bool(sampled(run, "cold_start")))
        kill_driver(run)
        killed_at["cold_start"] = sampled(run, "cold_start")
        run.start()

        run.until(lambda: saved_steps(run, "helpful_rm") >= 2)
        run.actor("TrainingWorker").kill()
        run.until(lambda: "restarting from the newest checkpoint" in run.output)
        killed_at["helpful_rm"] = saved_steps(run, "helpful_rm")

        run.until(lambda: saved_steps(run, "r1") >= RL_BATCHES // 2)
        run.actor("RewardWorker").kill()
        run.until(lambda: "reward worker 0 lost" in run.output)
        run.until(lambda: saved_steps(run, "r1") > RL_BATCHES // 2)
        kill_driver(run)
        killed_at["r1"] = saved_steps(run, "r1")
        run.start()

        run.until(lambda: saved_steps(run, "distill_qwen") >= 2)
        kill_driver(run)
        killed_at["distill_qwen"] = saved_steps(run, "distill_qwen")
        run.start()

        assert run.wait() == 0, run.output[-5000:]
        yield run
    finally:
        run.close()


def test_every_node_ends_and_the_report_has_the_reward_models(run: Run) -> None:
    for node, output in OUTPUTS.items():
        assert (run.artifact(node, output) / "manifest.json").is_file()
    assert not list(run.directory.glob("artifacts/.building-*"))
    page = (run.directory / "report.html").read_text()
    for name in ("helpful_rm", "safety_rm"):
        assert name in page


def test_a_killed_sampling_stage_samples_only_what_was_left(run: Run, killed_at: dict[str, Any]) -> None:
    before, after = killed_at["cold_start"], sampled(run, "cold_start")
    assert 0 < len(before) < N_PROMPTS
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == N_PROMPTS
    chats = [
        json.loads(line) for line in (run.artifact("cold_start", "chats") / "train.jsonl").read_text().splitlines()
    ]
    dropped = (run.artifact("cold_start", "chats") / "dropped.jsonl").read_text().splitlines()
    assert len(chats) + len(dropped) == 2 * N_PROMPTS


def test_a_reward_model_whose_worker_was_killed_is_trained_to_the_end(run: Run, killed_at: dict[str, Any]) -> None:
    steps = saved_steps(run, "helpful_rm")
    assert 2 <= killed_at["helpful_rm"] < steps
    for name in ("helpful_rm", "safety_rm"):
        assert 0 <= run.metrics(name)["validation/accuracy"].popitem()[1] <= 1  # on held-out prompts


def test_r1_trains_each_prompt_once_an_epoch_and_general_ones_in_the_last_steps_alone(
    run: Run, killed_at: dict[str, Any]
) -> None:
    assert RL_BATCHES // 2 < killed_at["r1"] < RL_BATCHES
    tickets = run.ledger("r1")
    late_from = (RL_STEPS - LATE_STEPS) * PROMPTS_A_STEP
    assert [ticket["ticket"] for ticket in tickets] == list(range(RL_STEPS * PROMPTS_A_STEP))
    assert max(Counter((ticket["epoch"], ticket["prompt_id"]) for ticket in tickets).values()) == 1
    general = [ticket["ticket"] for ticket in tickets if ticket["prompt_id"].startswith("general_")]
    assert general
    assert min(general) >= late_from
    scored = run.metrics("r1")
    assert {"reward/helpful", "reward/safety"} <= scored.keys()
    assert min(scored["reward/helpful"]) > (RL_STEPS - LATE_STEPS)


def test_a_killed_distillation_ends_with_think_tags_in_the_student_s_tokenizer(
    run: Run, killed_at: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    assert 2 <= killed_at["distill_qwen"] < saved_steps(run, "distill_qwen")
    before, after = (
        AutoTokenizer.from_pretrained(run.artifact(*of)) for of in (("qwen_base", "base"), ("distill_qwen", "tuned"))
    )
    assert len(before.encode("<think>", add_special_tokens=False)) > 1
    assert len(after.encode("<think>", add_special_tokens=False)) == 1
