"""The classic route: its graphs, what each stage hands on, and InstructGPT's figures, written here by hand."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from framework.artifacts import Checkpoint
from framework.config import CONF, build_graph, compose
from framework.data.general import answers_well
from framework.data.layouts.preferences import load_preferences
from framework.data.readers import read_prompts, read_rows
from framework.data.text.shard_files import read_text
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Graph, Runtime
from framework.objectives.ppo import Ppo
from framework.observe.curves import _against_kl, stage_charts
from framework.observe.metrics import StageHistory
from framework.stages.best_of_n import _best
from framework.stages.collect import NoInputs
from framework.stages.demonstrations import DemonstrationsConfig, MakeDemonstrations
from framework.stages.rankings import MakeRankings, RankingsConfig
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup
from tests.contract.families import write_checkpoint

COMMON = {"demonstrations", "tokenizer", "tokenize", "base", "sft_tokens", "sft", "rankings", "reward_model_tokens",
          "reward_model", "eval_sft", "eval_rlhf"}  # fmt: skip
WAYS = {
    (): {"rlhf"},
    ("stage.rlhf.algorithm=grpo",): {"rlhf"},
    ("stage.rlhf.algorithm=online_dpo",): {"rlhf"},
    ("stage.align.method=dpo",): {"rlhf_dpo"},
    ("stage.align.method=best_of_n",): {"best_of_n", "rlhf_sft_tokens", "rlhf_sft"},
    ("stage.align.beside=[grpo,dpo,best_of_n]",): {
        *("rlhf", "rlhf_grpo", "rlhf_dpo", "best_of_n", "rlhf_sft_tokens", "rlhf_sft"),
        *("eval_rlhf_grpo", "eval_rlhf_dpo", "eval_rlhf_best_of_n"),
    },
}
PUBLISHED = ("recipe=instructgpt", "model=qwen_7b", "cluster=node8")


@cache
def made(*overrides: str) -> Graph:
    return build_graph(compose(["job=rlhf", *overrides]))


@pytest.mark.parametrize("overrides", [*WAYS, PUBLISHED])
def test_every_way_begins_alike_and_is_evaluated(overrides: tuple[str, ...]) -> None:
    graph = made(*overrides)
    graph.check()
    assert set(graph.nodes) == COMMON | WAYS.get(overrides, {"rlhf"})
    assert ("text" in graph.nodes["rlhf"].edges if "rlhf" in graph.nodes else False) == (overrides == PUBLISHED)
    by_ppo = "rlhf" in graph.nodes and graph.nodes["rlhf"].stage.config.algorithm.critic is not None
    assert ("critic" in graph.nodes["rlhf"].edges if "rlhf" in graph.nodes else False) == by_ppo
    sft = graph.nodes["rankings"].edges["checkpoint"]
    evaluated = {name: node.edges for name, node in graph.nodes.items() if name.startswith("eval_")}
    assert evaluated.pop("eval_sft").keys() == {"checkpoint", "prompts", "helpful"}
    assert all(edges["reference"] == sft for edges in evaluated.values())


def test_each_way_stands_once() -> None:
    with pytest.raises(UserError, match=r"stage\.align\.beside: got 'dpo'; must be others than method=dpo, each once"):
        made("stage.align.method=dpo", "stage.align.beside=[dpo]")


def test_a_base_of_one_s_own_takes_the_place_of_the_pretraining(tmp_path: Path) -> None:
    write_checkpoint("qwen3_tied", tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 4096}))
    given = f"base={tmp_path / 'base'}"
    graph = made(given)
    graph.check()
    assert set(graph.nodes) == {*COMMON, "rlhf"} - {"tokenizer", "tokenize", "base"}
    base = graph.nodes["sft"].edges["base"]
    assert isinstance(base, Checkpoint)
    assert base.path == tmp_path / "base"
    assert graph.nodes["rlhf"].stage.model.name == "base"  # its sizes, not those of the job's own model
    mixed = made(given, "stage.rlhf.pretraining_coef=0.5")  # text is read with the base's own tokenizer
    mixed.check()
    assert "tokenize" in mixed.nodes
    assert "text" in mixed.nodes["rlhf"].edges
    later = made(given, "from=rankings", "stage.tokenizer.vocab_size=300")
    assert set(later.nodes) >= {"rankings", "rlhf"}


# InstructGPT (2203.02155), appendix C and Table 6; the base: GPT-3 (2005.14165) Table 2.1 and appendix B
FIGURES: dict[str, Any] = {
    "base.row_tokens": 2048, "base.engine.schedule.lr": 1.2e-4, "base.engine.schedule.final_ratio": 0.1,
    "sft.epochs": 2, "sft.chats_per_step": 32, "sft.lr": 1.04e-5, "sft.final_lr": 1.04e-6,
    "sft.expected_chats": 12_725,
    "reward_model.epochs": 1, "reward_model.prompts_per_step": 64, "reward_model.lr": 9e-6,
    "reward_model.final_lr": 9e-7, "reward_model.expected_prompts": 33_207, "reward_model.loss": "pairwise",
    "rlhf.prompts_per_batch": 512, "rlhf.prompts_per_step": 64, "rlhf.group_size": 1, "rlhf.temperature": 1.0,
    "rlhf.pretraining_coef": 27.8, "rlhf.pretraining_rows": 8 * 64,
    "rlhf.critic_schedule.lr": 9e-6, "rlhf.critic_schedule.warmup_steps": 0, "rlhf.max_tokens": 1024,
    "rlhf.ema_decay": 0.992, "rlhf.engine.learner.beta1": 0.9, "rlhf.engine.learner.beta2": 0.95,
    "rlhf.engine.learner.schedule.warmup_steps": 10 * 8,
    "rlhf.algorithm": Ppo(kl_coef=0.02, kl_target=None, clip_low=0.2, clip_high=0.2, gamma=1.0),
    # DeepSeek LLM (2401.02954) section 4
    "rlhf_dpo.epochs": 1, "rlhf_dpo.lr": 5e-6, "rlhf_dpo.prompts_per_step": 512,
    "best_of_n.sampling.n": 64,
}  # fmt: skip


def test_published_figures_are_instructgpt_s() -> None:
    stage = compose(["job=rlhf", *PUBLISHED]).stage

    def value(key: str) -> Any:
        found: Any = stage
        for name in key.split("."):
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        return found

    assert {key: value(key) for key in FIGURES} == FIGURES
    assert 4 <= stage["rankings"].sampling.n <= 9
    assert stage["rlhf"].steps * stage["rlhf"].prompts_per_step == 256_000
    tokens = stage["base"].rows_per_step * stage["base"].row_tokens
    assert tokens == pytest.approx(2e6, rel=0.03)
    assert tokens * stage["base"].steps == pytest.approx(300e9, rel=0.001)
    assert tokens * stage["base"].engine.schedule.warmup_steps == pytest.approx(375e6, rel=0.01)


def test_both_recipes_have_the_same_keys() -> None:
    def keys(node: Any, where: str = "") -> set[str]:
        if not isinstance(node, dict):
            return {where}
        return set().union(*(keys(value, f"{where}.{key}") for key, value in node.items()))

    names = ("rlhf", "instructgpt")
    laptop, published = (keys(yaml.safe_load((CONF / "recipe" / f"{name}.yaml").read_text())) for name in names)
    assert {key for key in laptop ^ published if "schedule" not in key} == set()


class Silent:
    said = ""

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.said = text

    def log(self, *_: Any) -> None:
        pass


def runtime(directory: Path) -> Runtime:
    (directory / "out").mkdir(parents=True, exist_ok=True)
    return Runtime("made", directory, directory / "out", 0, ClusterConfig(), cast(Any, Silent()), lambda: False)


def test_demonstrations_are_good_and_held_out_requests_are_in_none(tmp_path: Path) -> None:
    config = DemonstrationsConfig(documents=400, validation_documents=20, demonstrations=30)
    found = MakeDemonstrations(config).run(NoInputs(), runtime(tmp_path))
    prompts = {split: read_prompts(found.prompts.path / f"{split}.jsonl") for split in ("train", "heldout")}
    by_text = {prompt.text: prompt for prompt in prompts["train"]}
    chats = [row.fields["messages"] for row in read_rows(found.chats.path / "train.jsonl")]
    assert len(chats) == 30
    assert all(answers_well(by_text[asked["content"]], said["content"]) for asked, said in chats)
    texts = [document.text for document in read_text(found.text.path, "train")]
    every = {prompt.text: prompt for side in prompts.values() for prompt in side}
    good = [answers_well(every[text.split("\n")[0]], text.split("\n", 1)[1]) for text in texts]
    assert np.mean(good) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(UserError, match="did you mean 'writing'"):
        DemonstrationsConfig(kinds=("writting",))


def group(prompt: Prompt, *texts: str, cut: bool = False) -> ResponseGroup:
    none = np.zeros(1, np.float32)
    made = [Response(none.astype(np.int32), none, none.astype(np.int32), "length" if cut else "stop", t) for t in texts]
    return ResponseGroup(prompt, tuple(made))


def test_answers_are_ranked_and_what_says_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = MakeDemonstrations(DemonstrationsConfig(documents=1)).run(NoInputs(), runtime(tmp_path / "made")).prompts
    asked = read_prompts(prompts.path / "train.jsonl")[:3]
    for split in ("train", "heldout"):
        rows = [json.loads(line) for line in (prompts.path / f"{split}.jsonl").read_text().splitlines()[:3]]
        (prompts.path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heldout = read_prompts(prompts.path / "heldout.jsonl")
    good = [prompt.answer for prompt in (*asked, *heldout)]
    groups = [
        group(asked[0], "Xyz.", good[0], good[0]),
        group(asked[1], good[1], good[1]),
        group(asked[2], "a", "b", cut=True),
    ]
    groups += [group(prompt, prompt.answer, "7") for prompt in heldout]
    monkeypatch.setattr("framework.stages.rankings.sampled_groups", lambda *_: groups)
    inputs, running = (
        cast(Any, type("I", (), {"checkpoint": Checkpoint(tmp_path), "prompts": prompts})),
        runtime(tmp_path),
    )
    found = MakeRankings(RankingsConfig()).run(inputs, running).rankings.path
    (pair,) = load_preferences(str(found / "train.jsonl"))
    assert (pair.chosen["content"], pair.rejected["content"]) == (good[0], "Xyz.")
    assert len(list(load_preferences(str(found / "validation.jsonl")))) == 3
    assert running.tracker.said == "4 rankings, 8 answers, 2 prompts with one answer"  # type: ignore[attr-defined]
    given = runtime(tmp_path / "given")
    MakeRankings(RankingsConfig(with_given=True)).run(inputs, given)
    assert given.tracker.said.startswith("6 rankings")  # type: ignore[attr-defined]
    monkeypatch.setattr("framework.stages.rankings.sampled_groups", lambda *_: [group(g.prompt, "q") for g in groups])
    with pytest.raises(UserError, match=r"stage\.made: got 'no train ranking; 3 prompts with one answer'"):
        MakeRankings(RankingsConfig()).run(inputs, runtime(tmp_path))


def test_a_noisy_judge_errs_and_ranks_all_the_same_each_time(tmp_path: Path) -> None:
    prompt = Prompt("p", "Write one sentence about a red cat.", "general_writing", "The red cat sat.",
                    columns={"needs": "cat", "language": "en", "poor": "No."})  # fmt: skip
    wrong = Counter[str]()
    for seed in range(60):
        stage = MakeRankings(RankingsConfig(noise=2.0, with_given=True))
        row = stage._ranked(group(prompt, "q"), seed, Counter())
        assert row == stage._ranked(group(prompt, "q"), seed, Counter())
        assert row is not None
        best = max(zip(row["scores"], row["answers"], strict=True))[1]
        wrong[best] += 1
    assert 30 < wrong["The red cat sat."] < 60


def test_the_best_of_n_is_the_finished_answer_of_the_highest_reward() -> None:
    prompt = Prompt("p", "Hi", "general_greeting", "Hello!")
    answers = group(prompt, "a", "b", "c", "")
    scores = tuple(RewardScore(total, {}, error) for total, error in ((1.0, ""), (2.0, ""), (9.0, "broke"), (5.0, "")))
    chat = _best(ScoredGroup(answers, scores))
    assert chat is not None
    assert (chat.id, chat.messages[-1]["content"]) == ("p#1", "b")
    assert _best(ScoredGroup(group(prompt, "a", cut=True), scores[:1])) is None


def test_the_rule_reads_an_answer_without_reasoning_whole() -> None:
    prompt = Prompt("p", "Hi", "general_greeting", "Hello!", columns={"needs": "help"})
    said = group(prompt, "How can I help you?", "No.").responses
    rule = made().nodes["rlhf"].stage.config.reward.components["rule"]
    assert [rule(prompt, response) for response in said] == [1.0, 0.0]


def test_rewards_are_drawn_against_kl() -> None:
    rewards = {"reward/helpful": {2: -1.0, 4: 2.0, 6: 1.0}, "reward/rule": {2: 0.4, 4: 0.3, 6: 0.5}}
    kl = {"kl/sequence": {2: 0.1, 4: 0.9, 6: 0.5}, "reward/failed_share": {2: 0.0}}
    history = StageHistory("rlhf", {**rewards, **kl})
    found = {series.name: (series.steps, series.values) for series in _against_kl(history)}
    assert found == {"reward/helpful": ([10, 50, 90], [-1.0, 1.0, 2.0]), "reward/rule": ([10, 50, 90], [0.4, 0.5, 0.3])}
    assert "Rewards against KL" in " ".join(stage_charts(history).curves)
    assert "Rewards against KL" not in " ".join(stage_charts(StageHistory("grpo", {"reward/mean": {1: 0.0}})).curves)
