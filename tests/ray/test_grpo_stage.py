"""The GRPO stage on real engines: evaluated and exported on the way, extended past a damaged checkpoint, replayed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.artifacts import Checkpoint, PromptSet
from framework.data.readers import write_prompts
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.exports import find_export
from framework.graph.nodes import Graph
from framework.graph.runner import Runner
from framework.graph.store import Store
from framework.models.families.find import of_base
from framework.objectives.grpo import Grpo as Objective
from framework.observe.metrics import Tracker, read_history
from framework.rewards.base import RewardConfig
from framework.stages.evaluate import EvaluateConfig
from framework.stages.grpo import Engines, Grpo, GrpoConfig
from framework.stages.grpo_roles import find_rollouts
from framework.types import Prompt
from tests.contract.families import CONTEXT, write_checkpoint
from tests.e2e.parts import EvenText
from tests.ray.test_supervised_loop import weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CLUSTER = ClusterConfig(rollout_cpus=0.5, learner_cpus=0.5)
LEARNED = ("loss/policy", "train/grad_norm", "kl/old", "kl/reference", "train/entropy", "mismatch/mean_abs")
PROMPTS = tuple(Prompt(f"p{i}", f"{i}?", "sums", "2", token_ids=tuple(range(5, 12 + i))) for i in range(6))
REWARDS = RewardConfig({"accuracy": EvenText()}, time_limit_s=60)
SAMPLER = VllmConfig(dtype="float32", max_model_len=CONTEXT, max_num_seqs=8, kv_cache_gib=0.03, warm_up=False)
LEARNER = DeepSpeedConfig(token_budget=2 * CONTEXT, threads=1, schedule=LrSchedule(lr=3e-3))
CONFIG = GrpoConfig(
    steps=4, prompts_per_step=2, group_size=4, minibatches_per_rollout=1, max_staleness=1, max_tokens=8,
    checkpoint_every=2, evaluate_every=2, export_every=2,
    algorithm=Objective(kl_coef=0.01, reference_reset_steps=3), reward=REWARDS, engine=Engines(SAMPLER, LEARNER),
)  # fmt: skip


def run(directory: Path, config: GrpoConfig, name: str = "run") -> tuple[Path, dict[str, dict[int, float]]]:
    """Run a graph of GRPO alone; returns its policy and what it has recorded."""
    base = Checkpoint(directory / "base")
    asked = EvaluateConfig(k=2, max_tokens=8, max_prompts=3, reward=REWARDS, engine=SAMPLER)
    stage = Grpo(config, of_base(base.path), evaluate=asked if config.evaluate_every else None)
    graph, recorded = Graph(), config.rollouts_from
    given: dict[str, Any] = {"prompts": PromptSet(directory / "prompts")}
    graph.add("grpo", stage, base=base, **({"rollouts": find_rollouts(recorded)} if recorded else given))
    place = directory / name
    with Tracker(place, "grpo") as tracker:
        outputs = Runner(graph, Store(place), CLUSTER, tracker_of=lambda node: tracker).run()
    series = read_history(place).stages["grpo"].series
    return outputs["grpo"].policy.path, {metric: dict(values) for metric, values in series.items()}


def test_evaluated_extended_past_damage_and_trained_again_from_its_rollouts(
    ray_node: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    caplog.set_level(logging.INFO)
    write_checkpoint("llama3_tied", tmp_path / "base")
    (tmp_path / "prompts").mkdir()
    for split in ("train", "heldout"):
        write_prompts(tmp_path / "prompts" / f"{split}.jsonl", PROMPTS)
    config = replace(CONFIG, save_rollouts=tmp_path / "saved")

    policy, recorded = run(tmp_path, config)
    assert list(recorded["evaluation/pass_at_1"]) == [2, 4]
    assert all(0 <= value <= 1 for value in recorded["evaluation/pass_at_1"].values())
    export = find_export(tmp_path / "run", 4).path
    for name, tensor in weights(policy).items():
        np.testing.assert_array_equal(tensor, weights(export)[name])
    _, report = AutoModelForCausalLM.from_pretrained(find_export(tmp_path / "run", 2).path, output_loading_info=True)
    assert not any(report.values())
    assert AutoTokenizer.from_pretrained(export).chat_template

    (state,) = (tmp_path / "run" / "state").glob("grpo-*")
    best = max(recorded["evaluation/pass_at_1"].items(), key=lambda item: (item[1], -item[0]))[0]
    assert (state / "BEST").read_text() == f"batch_{best:06d}"
    damaged = next((state / "batch_000004").rglob("*optim_states.pt"))
    flipped = bytearray(damaged.read_bytes())
    flipped[5000:5064] = bytes(byte ^ 0x10 for byte in flipped[5000:5064])
    damaged.write_bytes(flipped)
    policy, recorded = run(tmp_path, replace(config, steps=6))
    assert "goes on from the last checkpoint of its 4 steps, to 6" in caplog.text
    assert "checkpoint batch_000004 is damaged" in caplog.text
    assert "going on from batch_000002" in caplog.text
    assert list(recorded["reward/mean"]) == [1, 2, 3, 4, 5, 6]
    assert list(recorded["evaluation/pass_at_1"]) == [2, 4, 6]
    entries = [json.loads(line) for line in (state / "batch_000006" / "ledger.jsonl").read_text().splitlines()[1:]]
    assert set(Counter((entry["epoch"], entry["prompt_id"]) for entry in entries).values()) == {1}
    assert [entry["batch"] for entry in entries] == [n // 2 for n in range(12)]

    replay = replace(CONFIG, steps=6, evaluate_every=0, export_every=0, rollouts_from=tmp_path / "saved")
    again, replayed = run(tmp_path, replay, "again")
    for metric in LEARNED:
        assert replayed[metric] == pytest.approx(recorded[metric], abs=1e-6, rel=1e-6), metric
    for name, tensor in weights(again).items():
        np.testing.assert_allclose(tensor, weights(policy)[name], atol=1e-6)
