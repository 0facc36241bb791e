from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from framework.artifacts import Checkpoint, PromptSet
from framework.data.readers import write_rows
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models import public_layout
from framework.observe.collect import read_evaluation
from framework.rewards.base import RewardConfig
from framework.rewards.format import Format
from framework.roles.reward import RewardWorker
from framework.stages import sampling
from framework.stages.eval_numbers import JudgedGroup, bootstrap, majority_is_right, pass_at
from framework.stages.evaluate import Evaluate, EvaluateConfig, EvaluateInputs, summarise
from framework.types import EvalTask, Prompt, Response, ResponseGroup, RewardScore, SamplingParams, ScoredGroup
from tests.fake_clients import RecordingTracker
from tests.fake_pools import FakePool


def group(answers: list[str], right: str, task: str = "t", finish: str = "stop") -> JudgedGroup:
    """Responses that give `answers` ("" for none)."""
    responses, scores = [], []
    for answer in answers:
        text = f"<think> x </think> <answer> {answer} </answer>" if answer else "no tags"
        ids = np.arange(4, dtype=np.int32)
        responses.append(Response(ids, ids.astype(np.float32), ids, finish, text))  # type: ignore[arg-type]
        scores.append(RewardScore(0.0, {"accuracy": float(answer == right), "format": float(bool(answer))}))
    votes = tuple(answers.index(answer) if answer else -1 for answer in answers)
    scored = ScoredGroup(ResponseGroup(Prompt(right, right, task, right), tuple(responses)), tuple(scores))
    return JudgedGroup(scored, votes)


def settings(k: int) -> EvaluateConfig:
    return EvaluateConfig(k=k, reward=RewardConfig({"format": Format(), "accuracy": Format()}))


def test_numbers_by_hand() -> None:
    groups = [group(["4", "4", "5", ""], "4", "a"), group(["1", "2", "2", "3"], "1", "b")]
    result = summarise("base", groups, settings(k=4))
    overall = result.overall
    assert overall.pass_at_1 == pytest.approx((0.5 + 0.25) / 2)
    assert overall.cons_at_k == 0.5  # the second group's majority says 2
    assert overall.pass_at_k == 1.0
    assert overall.format_rate == pytest.approx(7 / 8)
    assert overall.pass_at_1_se == pytest.approx(np.std([0.5, 0.25], ddof=1) / np.sqrt(2))
    assert overall.mean_response_tokens == 4
    assert [(task.task, task.pass_at_1) for task in result.tasks] == [("a", 0.5), ("b", 0.25)]


@pytest.mark.parametrize(
    ("answers", "right"),
    [(["4", "5"], True), (["5", "4"], False), (["", "", "", "4"], True), (["", ""], False)],
)
def test_majority_takes_the_first_of_equals_and_ignores_silence(answers: list[str], right: bool) -> None:
    assert majority_is_right(group(answers, "4"), ("accuracy",)) is right


def test_a_winning_answer_is_right_if_most_who_gave_it_are() -> None:
    """Of verdicts on one answer; that half of them, or a third, say right is not enough."""
    for verdicts, right in (((1, 0), False), ((1, 1, 0), True), ((1, 0, 0), False)):
        scores = tuple(RewardScore(0.0, {"accuracy": float(verdict)}) for verdict in verdicts)
        judged = group(["4"] * len(verdicts), "4")
        judged = JudgedGroup(replace(judged.scored, scores=scores), judged.votes)
        assert majority_is_right(judged, ("accuracy",)) is right


def test_sizes_and_cut_off_responses_are_counted() -> None:
    groups = [group(["4", "5"], "4"), group(["4", "4"], "4", finish="length"), group(["", ""], "4")]
    overall = summarise("base", groups, settings(k=2)).overall
    assert (overall.n_prompts, overall.k) == (3, 2)
    assert overall.truncated_share == pytest.approx(1 / 3)
    assert summarise("base", groups[:1], settings(k=2)).overall.pass_at_1_se is None  # one prompt has no spread


def test_a_group_without_a_verdict_is_in_no_majority() -> None:
    failed = tuple(RewardScore(0.0, error="timed out") for _ in range(2))
    unknown = group(["4", "4"], "4")
    unknown = JudgedGroup(replace(unknown.scored, scores=failed), unknown.votes)
    assert summarise("base", [unknown, group(["4", "4"], "4")], settings(k=2)).overall.cons_at_k == 1.0


def test_what_says_right_must_be_of_the_rewards() -> None:
    rewards = RewardConfig({"format": Format()})
    with pytest.raises(UserError, match=r"^right_by: got \['accuracy', .*\]; must be of the rewards: format"):
        EvaluateConfig(reward=rewards)


def test_pass_at_k_by_hand() -> None:
    assert pass_at(1, 4, 1) == 0.25
    assert pass_at(1, 4, 2) == pytest.approx(0.5)  # 1 - C(3,2)/C(4,2)
    assert pass_at(2, 4, 2) == pytest.approx(5 / 6)
    assert (pass_at(0, 4, 4), pass_at(1, 4, 4), pass_at(3, 4, 2)) == (0.0, 1.0, 1.0)
    overall = summarise("base", [group(["4", "5", "5", "6", "7", "8", "9", "3"], "4")], settings(k=8)).overall
    assert overall.pass_at == pytest.approx({"1": 1 / 8, "4": 0.5, "8": 1.0})


def test_a_failed_verdict_is_no_wrong_vote_and_is_counted() -> None:
    judged = group(["4"] * 5, "4")
    failed = RewardScore(0.0, error="timed out")
    scores = (failed, *judged.scored.scores[1:])
    judged = JudgedGroup(replace(judged.scored, scores=scores), judged.votes)
    assert majority_is_right(judged, ("accuracy",)) is True
    overall = summarise("base", [judged], settings(k=5)).overall
    assert (overall.pass_at_1, overall.cons_at_k, overall.format_rate, overall.failed_samples) == (1.0, 1.0, 1.0, 1)
    unknown = JudgedGroup(replace(judged.scored, scores=(failed,) * 5), judged.votes)
    assert majority_is_right(unknown, ("accuracy",)) is None
    assert summarise("base", [unknown, group(["4"] * 5, "4")], settings(k=5)).overall.pass_at_1 == 1.0


def test_each_component_has_its_own_denominator() -> None:
    def only(judged: JudgedGroup, name: str) -> JudgedGroup:
        scores = tuple(RewardScore(0.0, {name: score.components[name]}) for score in judged.scored.scores)
        return JudgedGroup(replace(judged.scored, scores=scores), judged.votes)

    right = group(["4", "4"], "4")
    overall = summarise("base", [only(right, "format"), only(right, "accuracy")], settings(k=2)).overall
    assert (overall.pass_at_1, overall.cons_at_k, overall.format_rate, overall.n_judged) == (1.0, 1.0, 1.0, 1)


def test_the_vote_decides_by_value_not_by_text() -> None:
    judged = group(["1/2", "0.5", "3", "3", "0.50"], "1/2")
    scores = tuple(RewardScore(0.0, {"accuracy": float(place in (0, 1, 4))}) for place in range(5))
    assert majority_is_right(JudgedGroup(replace(judged.scored, scores=scores), (0, 0, 2, 2, 0)), ("accuracy",)) is True


def test_only_held_out_prompts_are_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts that were trained on lie beside them: a gain measured on those would be no gain."""
    parts = {"train.jsonl": ("seen-0", "seen-1", "seen-2"), "heldout.jsonl": ("new-0", "new-1")}
    for name, ids in parts.items():
        write_rows(tmp_path / name, ({"id": id_, "text": id_, "task": "t", "answer": "4"} for id_ in ids))
    sampled: list[str] = []

    def generate(prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        sampled.append(prompt.id)
        return replace(group(["4"] * params.n, "4").scored.group, prompt=prompt)

    def judge(sampled: ResponseGroup, names: tuple[str, ...]) -> tuple[RewardScore, ...]:
        return tuple(replace(score, vote=0) for score in group(["4"] * len(sampled.responses), "4").scored.scores)

    pools = SimpleNamespace(rollout=FakePool(generate=generate), reward=FakePool(judge=judge))
    monkeypatch.setattr(sampling, "sampling_pools", lambda *_: nullcontext(pools))
    monkeypatch.setattr(public_layout, "without_stale_copies", lambda path, _: path)
    monkeypatch.setattr(sampling, "load_tokenizer", lambda _: None)
    monkeypatch.setattr(sampling, "tokenize_prompts", lambda _, prompts, *__: prompts)
    rewards = RewardConfig({"format": Format(), "accuracy": Format()})
    config = EvaluateConfig(k=2, max_tokens=64, engine=VllmConfig(max_model_len=128), reward=rewards)
    stage = Evaluate(config, "base")
    runtime = Runtime("eval", tmp_path, tmp_path, 0, ClusterConfig(), RecordingTracker(), lambda: False)
    found = stage.run(EvaluateInputs(Checkpoint(tmp_path), PromptSet(tmp_path)), runtime)
    assert sorted(sampled) == ["new-0", "new-1"]
    rows = [json.loads(line) for line in (found.report.path / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt_id"] for row in rows] == ["new-0", "new-1"]
    assert read_evaluation(found.report.path / "report.json").overall.n_prompts == 2


def test_nothing_judged_is_no_zero_and_each_prompt_keeps_its_share() -> None:
    judged = group(["4", "4", "5", ""], "4", "math")
    unjudged = group(["4", "4"], "9", "essay")
    scores = (RewardScore(0.0),) * 2
    unjudged = JudgedGroup(replace(unjudged.scored, scores=scores), unjudged.votes)
    result = summarise("base", [judged, unjudged], settings(k=4))
    essay = result.tasks[0]
    measured = (essay.pass_at_1, essay.pass_at_1_se, essay.cons_at_k, essay.pass_at_k, essay.format_rate)
    assert (essay.task, measured, essay.pass_at) == ("essay", (None,) * 5, {})
    assert result.overall.pass_at_1 == 0.5
    assert result.right_share == {"4": 0.5}


def test_levels_and_subjects_have_rows_of_their_own() -> None:
    def at(level: object, answers: list[str]) -> JudgedGroup:
        judged = group(answers, "4")
        prompt = replace(judged.scored.group.prompt, id=f"{level} {answers}", columns={"Level": level, "url": "u"})
        return JudgedGroup(replace(judged.scored, group=replace(judged.scored.group, prompt=prompt)), judged.votes)

    judged = [at(10, ["4", "4"]), at(2, ["4", "5"]), at(2, ["5", "6"])]
    result = summarise("base", judged, settings(k=2))
    assert [(part.task, part.n_prompts, part.pass_at_1) for part in result.groups] == [
        ("level 2", 2, 0.25),
        ("level 10", 1, 1.0),
    ]
    named = [at("Level 1", ["4", "4"]), at("Level 2", ["4", "5"])]
    assert [part.task for part in summarise("base", named, settings(k=2)).groups] == ["Level 1", "Level 2"]
    partly = [*judged, group(["4", "4"], "4")]
    assert summarise("base", partly, settings(k=2)).groups == ()
    assert summarise("base", judged[1:], settings(k=2)).groups == ()  # of one level alone


def test_bootstrapped_intervals() -> None:
    """Of n prompts, half right, the mean's spread is sqrt(0.25 / n): 0.05 for a hundred, so 1.96 of it to each side."""
    assert bootstrap([1.0]) is None
    assert bootstrap([1.0] * 8) == (1.0, 1.0)
    interval = bootstrap([0.0, 1.0] * 50)
    assert interval == pytest.approx((0.402, 0.598), abs=0.015)
    assert bootstrap([0.0, 1.0] * 50) == interval  # the same again
    overall = summarise("b", [group(["4", "5"], "4"), group(["4", "4"], "4")], settings(k=2)).overall
    assert overall.pass_at_1_interval == (0.5, 1.0)
    assert overall.cons_at_k_interval == (1.0, 1.0)
    file_form = json.loads(json.dumps(asdict(overall)))
    assert EvalTask(**file_form).pass_at_1_interval == [0.5, 1.0]


def scored(prompt: Prompt, *components: dict[str, float]) -> JudgedGroup:
    """Responses with these components, which give no answer."""
    ids = np.arange(4, dtype=np.int32)
    responses = tuple(Response(ids, ids.astype(np.float32), ids, "stop", "x") for _ in components)
    scores = tuple(RewardScore(0.0, found) for found in components)
    return JudgedGroup(ScoredGroup(ResponseGroup(prompt, responses), scores), (-1,) * len(components))


def test_a_prompt_is_right_by_what_judges_its_kind_and_each_domain_has_a_row() -> None:
    program = Prompt("p", "?", "mine", "", columns={"tests": [{"input": "1", "output": "1"}]})
    choice = Prompt("o", "?", "options", "B", columns={"options": {"A": "x", "B": "y"}})
    asked = Prompt("g", "?", "general_decline", "")
    judged = [
        scored(program, {"code": 1.0, "format": 0.0}, {"code": 0.0, "format": 1.0}),
        scored(choice, {"options": 1.0, "language": 0.5}, {"options": 1.0, "language": 1.0}),
        scored(Prompt("m", "?", "math", "4"), {"accuracy": 0.0, "language": 0.25}, {"accuracy": 0.0, "language": 0.25}),
        scored(Prompt("c", "?", "chain_sum", "4"), {"accuracy": 1.0}, {"accuracy": 1.0}),
        scored(Prompt("l", "?", "logic", "yes"), {"accuracy": 1.0}, {"accuracy": 0.0}),
        scored(asked, {"safety": 1.0}, {"safety": 0.0}),
    ]
    result = summarise("base", judged, settings(k=2))
    assert [(row.task, row.n_prompts, row.pass_at_1) for row in result.domains] == [
        ("math", 2, 0.5), ("programs", 1, 0.5), ("options", 1, 1.0), ("logic", 1, 0.5), ("general", 1, None),
    ]  # fmt: skip
    assert (result.overall.pass_at_1, result.overall.n_judged) == (0.6, 5)
    language = result.overall.scores["language"]
    assert (language.mean, language.n_prompts) == (0.5, 2)  # 0.75 and 0.25
    assert language.error == pytest.approx(np.std([0.75, 0.25], ddof=1) / np.sqrt(2))
    assert (result.overall.scores["safety"].mean, result.overall.scores["safety"].error) == (0.5, None)
    assert summarise("base", judged[2:4], settings(k=2)).domains == ()  # all of one


def test_votes_are_of_what_judges_the_prompt_s_kind() -> None:
    asked: list[str] = []

    def votes(group: ResponseGroup, name: str) -> tuple[int, ...]:
        asked.append(name)
        return (0,) * len(group.responses)

    fake = SimpleNamespace(score=lambda group: (RewardScore(0.0),) * len(group.responses), votes=votes)
    worker = RewardWorker(RewardConfig({name: Format() for name in ("accuracy", "code", "format")}))
    worker.__dict__["_scorer"] = fake
    for rewards, told in ((("code", "format"), (0, 0)), ((), (0, 0)), (("format",), (-1, -1))):
        group = scored(Prompt("p", "?", "t", "", rewards), {}, {}).scored.group
        assert tuple(score.vote for score in worker.judge(group, ("accuracy", "options", "code"))) == told
    assert asked == ["code", "accuracy"]


def test_general_requests_are_asked_too_and_reasoning_is_not_asked_for_their_rewards(tmp_path: Path) -> None:
    rows = {"reasoning": {"task": "math"}, "general": {"task": "general_decline", "rewards": ["safety", "format"]}}
    for name, row in rows.items():
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "heldout.jsonl", [{"id": name, "text": name, "answer": "4", **row}])
    rewards = RewardConfig({name: Format() for name in ("accuracy", "format", "safety")})
    stage = Evaluate(EvaluateConfig(max_tokens=64, engine=VllmConfig(max_model_len=128), reward=rewards), "base")
    sets = (PromptSet(tmp_path / "reasoning"), PromptSet(tmp_path / "general"))
    found = stage._prompts(EvaluateInputs(Checkpoint(tmp_path), *sets))
    assert {prompt.id: prompt.rewards for prompt in found} == {
        "reasoning": ("accuracy", "format"),
        "general": ("safety", "format"),
    }
