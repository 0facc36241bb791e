from __future__ import annotations

import numpy as np
import pytest

from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.rewards.base import RewardConfig
from framework.rewards.format import Format
from framework.stages.evaluate import Evaluate, EvaluateConfig, majority_is_right, summarise
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup


def group(answers: list[str], right: str, task: str = "t", finish: str = "stop") -> ScoredGroup:
    """Responses that give `answers` ("" for none)."""
    responses, scores = [], []
    for answer in answers:
        text = f"<think> x </think> <answer> {answer} </answer>" if answer else "no tags"
        ids = np.arange(4, dtype=np.int32)
        responses.append(Response(ids, ids.astype(np.float32), ids, finish, text))  # type: ignore[arg-type]
        scores.append(RewardScore(0.0, {"accuracy": float(answer == right), "format": float(bool(answer))}))
    return ScoredGroup(ResponseGroup(Prompt(right, right, task, right), tuple(responses)), tuple(scores))


def test_numbers_by_hand() -> None:
    groups = [group(["4", "4", "5", ""], "4", "a"), group(["1", "2", "2", "3"], "1", "b")]
    result = summarise("base", groups, EvaluateConfig(k=4))
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
    assert majority_is_right(group(answers, "4"), "accuracy") is right


def test_accuracy_must_be_one_of_the_rewards() -> None:
    rewards = RewardConfig({"format": Format()})
    with pytest.raises(UserError, match=r"stage\.evaluate\.accuracy"):
        Evaluate(EvaluateConfig(), "base", VllmConfig(), rewards)
