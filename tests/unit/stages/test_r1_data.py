"""The stages that make R1's conversations: cold start, rejection sampling, V3's data and their mix."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts import ChatSet, Checkpoint, PromptSet
from framework.data.chat_shards import Chat, read_chats
from framework.data.general import KINDS
from framework.data.readers import read_prompts, write_prompts, write_rows
from framework.data.reasoning import split_reasoning
from framework.data.selection import SelectionConfig
from framework.data.splits import check_disjoint
from framework.errors import UserError
from framework.rewards.accuracy import Accuracy
from framework.rewards.base import RewardConfig
from framework.rewards.format import Format
from framework.stages.cold_start import ColdStart, ColdStartConfig, ColdStartInputs
from framework.stages.mix import Mix, MixConfig, MixInputs
from framework.stages.rejection import RejectionInputs, RejectionSampling
from framework.stages.sampling import SamplingConfig
from framework.stages.v3_data import MakeV3Data, V3DataConfig, V3DataInputs
from framework.types import Prompt
from tests.fake_sampling import FakeRun, Killed, fake_sampling

REWARDS = RewardConfig({"accuracy": Accuracy(), "format": Format()})
ZERO, WRITER = Checkpoint(Path("zero")), Checkpoint(Path("writer"))
QUESTIONS = [Prompt(f"p{n}", f"What is {n} + 8?", "math", str(n + 8)) for n in range(6)]


@pytest.fixture
def prompts(tmp_path: Path) -> PromptSet:
    directory = tmp_path / "prompts"
    for split, found in (("train", QUESTIONS), ("heldout", [Prompt("h", "What is 3 + 9?", "math", "12")])):
        write_prompts(directory / f"{split}.jsonl", found)
    return PromptSet(directory)


def config(n: int = 2, **more: Any) -> ColdStartConfig:
    return ColdStartConfig(SamplingConfig(n=n), reward=REWARDS, **more)


def zero_answers(checkpoint: Path, prompt: Prompt, place: int) -> str:
    """Right in the first place, wrong in the second, both in R1-Zero's form."""
    value = int(prompt.answer) + place
    return f"<think> {prompt.text[8:].rstrip('?')}= {value} </think> <answer> {value} </answer>"


def dropped(chats: ChatSet) -> Counter[str]:
    rows = map(json.loads, (chats.path / "dropped.jsonl").read_text().splitlines())
    return Counter(row["reason"] for row in rows)


def test_cold_start_keeps_what_is_right_rewrites_it_and_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, zero_answers)
    chats = ColdStart(config()).run(ColdStartInputs(ZERO, prompts), FakeRun(tmp_path).runtime()).chats
    found = list(read_chats(chats.path / "train.jsonl"))
    assert [chat.id for chat in found] == [f"p{n}#0" for n in range(6)]  # ids lead back to prompt and response
    assert dropped(chats) == {"wrong": 6}
    for chat, prompt in zip(found, QUESTIONS, strict=True):
        assert chat.messages[0] == {"role": "user", "content": prompt.text}
        parts = split_reasoning(chat.messages[1]["content"])
        assert parts is not None
        assert parts.reasoning.endswith(f"= {prompt.answer}")
        assert f"\\boxed{{{prompt.answer}}}" in parts.summary


def test_a_writer_rewrites_and_what_it_spoils_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    def answers(checkpoint: Path, prompt: Prompt, place: int) -> str:
        if checkpoint == ZERO.path:
            return zero_answers(checkpoint, prompt, place)
        if prompt.id.startswith("p0"):
            return "I would rather not."
        value = 99 if prompt.id.startswith("p1") else prompt.answer
        return f"<think>I add eight to it.</think>\n\nTogether \\boxed{{{value}}}."

    fake_sampling(monkeypatch, answers)
    stage = ColdStart(config(select=SelectionConfig(most_per_prompt=1)))
    chats = stage.run(ColdStartInputs(ZERO, prompts, WRITER), FakeRun(tmp_path).runtime()).chats
    found = list(read_chats(chats.path / "train.jsonl"))
    assert {chat.messages[0]["content"] for chat in found} == {p.text for p in QUESTIONS[2:]}  # not the request
    assert {chat.id for chat in found} == {f"p{n}#0" for n in range(2, 6)}
    assert dropped(chats) == {"wrong": 6, "rewritten_wrong": 2}


@pytest.mark.parametrize("kind", ["cold_start", "rejection"])
def test_groups_sampled_before_a_kill_are_not_sampled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet, kind: str
) -> None:
    def run(place: FakeRun) -> ChatSet:
        if kind == "cold_start":
            return ColdStart(config()).run(ColdStartInputs(ZERO, prompts), place.runtime()).chats
        return RejectionSampling(config()).run(RejectionInputs(ZERO, prompts), place.runtime()).chats

    fake_sampling(monkeypatch, zero_answers)
    whole = run(FakeRun(tmp_path / "whole"))
    first, killed = fake_sampling(monkeypatch, zero_answers, dies_at=4), FakeRun(tmp_path / "killed")
    with pytest.raises(Killed):
        run(killed)
    second = fake_sampling(monkeypatch, zero_answers)
    resumed = run(killed)
    assert len(first.sampled) == 4
    assert sorted(first.sampled + second.sampled) == [f"p{n}" for n in range(6)]
    for name in ("train.jsonl", "dropped.jsonl"):
        assert (resumed.path / name).read_text() == (whole.path / name).read_text()


def test_rejection_keeps_the_reasoning_as_it_was_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, lambda c, p, n: f"way {n}\n</think>\n\nIt is \\boxed{{{p.answer}}}.", opened="<think>\n")
    chats = RejectionSampling(config(n=3)).run(RejectionInputs(ZERO, prompts), FakeRun(tmp_path).runtime()).chats
    found = list(read_chats(chats.path / "train.jsonl"))
    assert len(found) == 18
    assert found[1].messages[1]["content"] == f"<think>\nway 1\n</think>\n\nIt is \\boxed{{{QUESTIONS[0].answer}}}."


def test_an_empty_set_is_one_line_that_says_what_became_of_the_responses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, lambda checkpoint, prompt, place: "no idea")
    with pytest.raises(UserError, match=r"^stage\.rejection: got '0 kept; dropped: 12 wrong'; must keep a response"):
        RejectionSampling(config()).run(RejectionInputs(ZERO, prompts), FakeRun(tmp_path, "rejection").runtime())


def test_a_reward_that_decides_must_be_configured() -> None:
    with pytest.raises(UserError, match=r"select\.right_by: got \['judge'\]; must be of the rewards: accuracy"):
        config(select=SelectionConfig(right_by=("judge",)))


def v3_data(**more: Any) -> V3DataConfig:
    return V3DataConfig(SamplingConfig(n=1), reward=REWARDS, **more)


def test_v3_data_are_chats_to_learn_and_prompts_of_which_some_are_held_out(tmp_path: Path) -> None:
    made = MakeV3Data(v3_data()).run(V3DataInputs(), FakeRun(tmp_path).runtime())
    train, heldout = (read_prompts(made.prompts.path / f"{split}.jsonl") for split in ("train", "heldout"))
    check_disjoint(train, heldout)
    chats = list(read_chats(made.chats.path / "train.jsonl"))
    assert {chat.id for chat in chats} == {f"{prompt.id}#0" for prompt in train}
    assert {prompt.task for prompt in heldout} == {f"general_{kind}" for kind in KINDS}
    assert {prompt.task for prompt in train[:64]} == {f"general_{kind}" for kind in KINDS}  # some of each come first
    for prompt in (*train, *heldout):
        assert prompt.rewards[0] == ("safety" if prompt.task == "general_decline" else "helpful")
    again = MakeV3Data(v3_data()).run(V3DataInputs(), FakeRun(tmp_path / "again").runtime())
    assert (again.chats.path / "train.jsonl").read_text() == (made.chats.path / "train.jsonl").read_text()


def test_a_writer_answers_requests_of_ones_own_and_nobody_else_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    with pytest.raises(UserError, match="requests of your own need a writer"):
        MakeV3Data(v3_data()).run(V3DataInputs(prompts), FakeRun(tmp_path / "none").runtime())
    fake_sampling(monkeypatch, lambda c, p, n: "rude" if p.id == "p3" else f"<think></think> Of course: {p.answer}")
    made = MakeV3Data(v3_data()).run(V3DataInputs(prompts, WRITER), FakeRun(tmp_path).runtime())
    chats = list(read_chats(made.chats.path / "train.jsonl"))
    assert [chat.id for chat in chats] == [f"p{n}#0" for n in (0, 1, 2, 4, 5)]
    assert chats[0].messages[0]["content"] == QUESTIONS[0].text
    assert chats[0].messages[1]["content"] == "<think>\n</think>\n\nOf course: 8"
    assert dropped(made.chats) == {"no_reasoning": 1}


def test_kinds_are_counted_and_known() -> None:
    assert len(v3_data(kinds={"writing": 5, "decline": 3}).requests(0)) == 8
    with pytest.raises(UserError, match=r"kinds\.wriitng: got 5; did you mean 'writing'"):
        v3_data(kinds={"wriitng": 5})
    with pytest.raises(UserError, match=r"kinds: got \{\}; must name at least one"):
        v3_data(kinds={})


def chat_set(directory: Path, *names: str) -> ChatSet:
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    write_rows(directory / "train.jsonl", (asdict(Chat(name, messages)) for name in names))
    return ChatSet(directory)


def test_the_mix_has_the_shares_and_says_what_was_too_much(tmp_path: Path) -> None:
    sets = [chat_set(tmp_path / name, *(f"{name}{n}" for n in range(8))) for name in ("r", "g")]
    mixed = Mix(MixConfig({"reasoning": 2, "general": 1})).run(MixInputs(*sets), FakeRun(tmp_path).runtime()).chats
    names = [chat.id for chat in read_chats(mixed.path / "train.jsonl")]
    assert Counter(name[0] for name in names) == {"r": 8, "g": 4}
    assert dropped(mixed) == {"surplus": 4}
    assert names != sorted(names, reverse=True)


def test_an_id_in_both_sets_is_refused(tmp_path: Path) -> None:
    sets = [chat_set(tmp_path / "r", "a", "b"), chat_set(tmp_path / "g", "b", "c")]
    with pytest.raises(UserError, match="got 'b'; is the id of a conversation of reasoning and of general"):
        Mix(MixConfig({"reasoning": 1, "general": 1})).run(MixInputs(*sets), FakeRun(tmp_path, "mix").runtime())


def test_a_plan_counts_what_is_sampled_as_a_third_of_grpo() -> None:
    from framework.graph.cluster import ClusterConfig
    from framework.models.estimate import rl_hours
    from tests.learners import TINY_V3

    cluster, settings = ClusterConfig(), config(n=2, most_prompts=100)
    estimate = RejectionSampling(settings, TINY_V3).estimate(cluster)
    tokens = 100 * 2 * settings.sampling.max_tokens
    assert estimate.hours == pytest.approx(rl_hours(TINY_V3, tokens, 0, cluster.gpu_tflops, cluster.cpus) / 3)
    assert estimate.batch["prompts"] == 100
    assert MakeV3Data(v3_data()).estimate(cluster).hours == 0  # templates cost nothing
