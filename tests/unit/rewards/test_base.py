from __future__ import annotations

import math

import pytest

from framework.errors import UserError
from framework.rewards.base import Reward, RewardConfig, score_response
from framework.rewards.format import Format
from framework.types import Prompt
from tests.contract.sample_rewards import Obedient, response_of

PROMPT = Prompt("p0", "question", "t", "a")


def test_the_total_is_the_weighted_sum_of_the_components() -> None:
    components = {"a": Obedient(weight=2.0), "b": Obedient(weight=-0.5)}
    score = score_response(components, PROMPT, response_of("3"))
    assert (score.total, score.components, score.error) == (4.5, {"a": 3.0, "b": 3.0}, "")


def test_a_prompt_may_choose_its_rewards() -> None:
    components = {"a": Obedient(weight=2.0), "b": Obedient()}
    score = score_response(components, Prompt("p0", "q", "t", "a", rewards=("b",)), response_of("3"))
    assert (score.total, score.components) == (3.0, {"b": 3.0})


def test_a_failed_component_keeps_what_was_scored_and_gives_nothing() -> None:
    class Broken(Reward):
        def __call__(self, prompt: Prompt, response: object) -> float:
            return math.inf

    score = score_response({"a": Obedient(), "b": Broken()}, PROMPT, response_of("3"))
    assert (score.total, score.components) == (0.0, {"a": 3.0})
    assert score.error == "reward b raised ValueError: returned inf, not a finite number"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("reward.components", {"components": {}}),
        ("reward.components.a", {"components": {"a": "accuracy"}}),
        ("reward.components.a", {"components": {"a": Reward()}}),  # a yaml node without a _target_
        ("RewardConfig.time_limit_s", {"time_limit_s": 0}),
        ("RewardConfig.startup_limit_s", {"startup_limit_s": math.inf}),
        ("RewardConfig.memory_limit_mb", {"memory_limit_mb": -1}),
        ("RewardConfig.max_failed_share", {"max_failed_share": 1.5}),
    ],
)
def test_a_wrong_setting_is_named(key: str, change: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        RewardConfig(**({"components": {"a": Format()}} | change))  # type: ignore[arg-type]
    assert caught.value.where == key


def test_a_weight_is_finite() -> None:
    with pytest.raises(UserError, match=r"^Format\.weight: got nan; must be a finite number"):
        Format(weight=math.nan)


def test_a_prompt_that_asks_for_an_unknown_reward_is_named() -> None:
    config = RewardConfig({"accuracy": Obedient(), "format": Format()})
    config.check_prompts([PROMPT, Prompt("p1", "q", "t", "a", rewards=("format",))])
    with pytest.raises(UserError, match=r"prompt p7.*'acuracy'.*did you mean 'accuracy'"):
        config.check_prompts([Prompt("p7", "q", "t", "a", rewards=("acuracy",))])
