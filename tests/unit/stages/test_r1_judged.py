"""The stages that make the reward models' data: pairs compared by a judge, answers labelled safe or unsafe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts import Checkpoint, PreferenceSet, PromptSet
from framework.data.general import general_requests
from framework.data.layouts.preferences import load_preferences
from framework.data.pairs import PairConfig
from framework.data.readers import write_prompts
from framework.errors import UserError
from framework.stages.preference_pairs import MakePairs, PairsConfig, PairsInputs
from framework.stages.safety_labels import LabelSafety, LabelsConfig, LabelsInputs
from framework.stages.sampling import SamplingConfig
from framework.types import Prompt
from tests.fake_sampling import FakeRun, Killed, fake_sampling

POLICY, JUDGE = Checkpoint(Path("dev3")), Checkpoint(Path("judge"))
FACTS = [general.prompt(("helpful",)) for general in general_requests("factual_qa", 0) if general.language == "en"][:6]
DECLINE = [general.prompt(("safety",)) for general in general_requests("decline", 0) if general.language == "en"]
HARM, APART = DECLINE[:4], DECLINE[4:6]


@pytest.fixture
def prompts(tmp_path: Path) -> PromptSet:
    write_prompts(tmp_path / "prompts" / "train.jsonl", [*FACTS, *HARM])
    write_prompts(tmp_path / "prompts" / "heldout.jsonl", APART)
    return PromptSet(tmp_path / "prompts")


def answers(checkpoint: Path, prompt: Prompt, place: int) -> str:
    """The reference in even places, ignorance in odd ones."""
    said = prompt.answer if place % 2 == 0 else "Nobody can know that, I am afraid."
    return f"<think>\n</think>\n\n{said}"


def rows(directory: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def pairs(place: FakeRun, prompts: PromptSet, judge: Checkpoint | None = None, **more: Any) -> PreferenceSet:
    config = PairsConfig(**{"sampling": SamplingConfig(n=2, purpose="preferences"), "pairs": PairConfig(), **more})
    return MakePairs(config).run(PairsInputs(POLICY, prompts, judge), place.runtime()).pairs


LOOSE: dict[str, Any] = {"pairs": PairConfig(balance=False)}


def test_pairs_are_of_summaries_alone_and_of_the_reward_s_own_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, answers)
    made = pairs(FakeRun(tmp_path), prompts, **LOOSE)
    found = list(load_preferences(str(made.path / "train.jsonl")))
    assert [one.id for one in found] == [f"{prompt.id}#0-1" for prompt in FACTS]
    assert [one.chosen["content"] for one in found] == [prompt.answer for prompt in FACTS]
    assert not any("think" in str(row) for row in rows(made.path))
    assert {row["margin"] for row in rows(made.path)} == {2.0}
    assert rows(made.path, "dropped") == []


def grader(verdict: Callable[[str, str], str], asked: list[str]) -> Callable[[Path, Prompt, int], str]:
    """A judge that sees both answers; the policy answers as ever."""

    def answer(checkpoint: Path, prompt: Prompt, place: int) -> str:
        if checkpoint != JUDGE.path:
            return answers(checkpoint, prompt, place)
        asked.append(prompt.id)
        (message,) = prompt.messages
        _, _, both = message["content"].partition("Answer A:\n")
        first, _, second = both.partition("\n\nAnswer B:\n")
        return verdict(first, second)

    return answer


def test_a_judge_is_asked_four_times_and_either_order_counts_for_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    asked: list[str] = []
    fake_sampling(monkeypatch, grader(lambda a, b: "[[B>>A]]" if "Nobody" in a else "[[A>>B]]", asked))
    made = pairs(FakeRun(tmp_path), prompts, JUDGE, **LOOSE)
    assert len(asked) == len(set(asked)) == 4 * len(FACTS)
    assert [row["chosen"]["content"] for row in rows(made.path)] == [prompt.answer for prompt in FACTS]


def test_a_judge_that_always_likes_the_first_place_makes_no_pairs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, grader(lambda a, b: "[[A>>B]]", []))
    with pytest.raises(UserError, match=r"stage\.helpful_pairs: got '\d pairs, 0 held out; dropped: .*contradictory"):
        pairs(FakeRun(tmp_path, "helpful_pairs", seed=3), prompts, JUDGE, most_prompts=1)


@pytest.mark.parametrize("reply", ["", "Both are nice.", "[[A>>B]] or rather [[B>A]]"])
def test_a_judge_that_talks_nonsense_is_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet, reply: str
) -> None:
    fake_sampling(monkeypatch, grader(lambda a, b: reply, []))
    with pytest.raises(UserError, match="got '0 pairs, 0 held out; dropped: 6 no_verdict'; must keep a pair"):
        pairs(FakeRun(tmp_path), prompts, JUDGE)


def test_a_template_s_answers_are_compared_with_every_answer_and_with_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, lambda c, p, n: answers(c, p, n) if n < 2 else "no tags")
    three = SamplingConfig(n=3, purpose="preferences")
    made = pairs(FakeRun(tmp_path), prompts, sampling=three, with_templates=True, **LOOSE)
    poor, ignorant = FACTS[0].columns["poor"], "Nobody can know that, I am afraid."
    found = {
        (row["prompt"][0]["content"], row["chosen"]["content"], row["rejected"]["content"]) for row in rows(made.path)
    }
    assert found == {(one.text, one.answer, worse) for one in FACTS for worse in (poor, ignorant)}
    reasons = Counter(row["reason"] for row in rows(made.path, "dropped"))
    assert reasons == {
        "no_reasoning": 6,
        "equal": 6,
        "unclear": 6,
        "duplicate": 12,
    }  # a duplicate is 0-good's or 0-poor's


def test_without_any_answer_of_the_model_a_template_s_two_are_left_and_held_out_prompts_stay_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, lambda c, p, n: "no tags")
    write_prompts(prompts.path / "train.jsonl", FACTS[:4])
    write_prompts(prompts.path / "heldout.jsonl", FACTS[4:])
    made = pairs(FakeRun(tmp_path), prompts, with_templates=True, **LOOSE)
    for name, asked in (("train", FACTS[:4]), ("validation", FACTS[4:])):
        assert [row["id"] for row in rows(made.path, name)] == [f"{one.id}#good-poor" for one in asked]


def test_what_is_no_answer_in_r1_s_form_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, lambda c, p, n: answers(c, p, n) if n < 2 else "no tags")
    made = pairs(FakeRun(tmp_path), prompts, sampling=SamplingConfig(n=3, purpose="preferences"), **LOOSE)
    assert Counter(row["reason"] for row in rows(made.path, "dropped")) == {"no_reasoning": 6}


def test_judgements_before_a_kill_are_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    verdict = grader(lambda a, b: "[[B>>A]]" if "Nobody" in a else "[[A>>B]]", [])
    fake_sampling(monkeypatch, verdict)
    whole = pairs(FakeRun(tmp_path / "whole"), prompts, JUDGE, **LOOSE)
    killed, first = FakeRun(tmp_path / "killed"), fake_sampling(monkeypatch, verdict, dies_at=9)
    with pytest.raises(Killed):
        pairs(killed, prompts, JUDGE, **LOOSE)
    second = fake_sampling(monkeypatch, verdict)
    resumed = pairs(killed, prompts, JUDGE, **LOOSE)
    sampled = first.sampled + second.sampled
    assert len(sampled) == len(set(sampled)) == 6 + 24
    assert rows(resumed.path) == rows(whole.path)


def test_prompts_without_the_reward_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, answers)
    with pytest.raises(UserError, match=r"stage\.node\.scored_by: got 'helpfull'"):
        pairs(FakeRun(tmp_path), prompts, scored_by="helpfull")
    with pytest.raises(UserError, match=r"sampling\.n: got 1; must be at least 2"):
        PairsConfig(SamplingConfig(n=1))
    with pytest.raises(UserError, match=r"judging\.n: got 4; must be 1"):
        PairsConfig(judging=SamplingConfig(n=4))


def labels(place: FakeRun, prompts: PromptSet, judge: Checkpoint | None = None, **more: Any) -> Path:
    config = LabelsConfig(**{"sampling": SamplingConfig(n=2, purpose="safety"), **more})
    return LabelSafety(config).run(LabelsInputs(POLICY, prompts, judge), place.runtime()).labels.path


def test_only_what_fails_to_decline_is_unsafe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, answers)
    found = rows(labels(FakeRun(tmp_path), prompts))
    unsafe = {row["id"] for row in found if not row["label"]}
    assert unsafe == {f"{prompt.id}#1" for prompt in HARM}
    assert len(found) == 2 * (len(FACTS) + len(HARM))
    held_out = rows(tmp_path / "out-1" / "labels", "validation")
    assert [(row["id"], row["label"]) for row in held_out] == [
        (f"{prompt.id}#{place}", 1 - place) for prompt in APART for place in range(2)
    ]
    assert all(row["answer"]["content"].startswith("<think>\n") for row in found)  # reasoning is read too


def test_a_judge_labels_and_its_nonsense_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    def verdict(checkpoint: Path, prompt: Prompt, place: int) -> str:
        if checkpoint != JUDGE.path:
            return answers(checkpoint, prompt, place)
        text = prompt.messages[0]["content"]
        if "capital" in text:
            return "[[safe]] [[unsafe]]"
        return "[[unsafe]]" if "Nobody" in text else "I find it [[safe]]"

    fake_sampling(monkeypatch, verdict)
    directory = labels(FakeRun(tmp_path), prompts, JUDGE)
    assert Counter(row["label"] for row in rows(directory)) == {0: 4, 1: 4}
    assert Counter(row["reason"] for row in rows(directory, "dropped")) == {"no_verdict": 12}


def test_answers_of_one_label_alone_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prompts: PromptSet
) -> None:
    fake_sampling(monkeypatch, lambda c, p, n: f"<think>\n</think>\n\n{p.answer}")
    with pytest.raises(
        UserError, match=r"stage\.safety_labels: got '20 safe, 0 unsafe, 4 held out, 0 dropped'; must have answers"
    ):
        labels(FakeRun(tmp_path / "one", "safety_labels"), prompts)
    assert Counter(row["label"] for row in rows(labels(FakeRun(tmp_path), prompts, with_templates=True))) == {
        1: 36,
        0: 4,
    }
