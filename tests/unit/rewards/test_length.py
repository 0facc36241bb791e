from __future__ import annotations

from dataclasses import replace

import pytest

from framework.errors import UserError
from framework.rewards.base import RewardConfig
from framework.rewards.isolation import InProcessScorer, IsolatedScorer
from framework.rewards.length import Length
from framework.types import Prompt, ResponseGroup
from tests.contract.sample_rewards import Obedient, response_of

GROUP = ResponseGroup(
    Prompt("p0", "q", "t", "a"),
    tuple(response_of(text, n_tokens=n) for text, n in (("1", 10), ("0", 10), ("1", 20), ("1", 50))),
)


def test_shorter_right_ones_gain_and_wrong_ones_never_do() -> None:
    reward = Length(right=Obedient()).for_group(GROUP)
    assert [reward(GROUP.prompt, response) for response in GROUP.responses] == [0.5, 0.0, 0.25, -0.5]


def test_without_a_judge_being_short_pays_nothing() -> None:
    reward = Length().for_group(GROUP)
    assert [reward(GROUP.prompt, response) for response in GROUP.responses] == [0.0, 0.0, 0.0, -0.5]


def test_a_group_of_one_length_is_left_alone() -> None:
    group = replace(GROUP, responses=GROUP.responses[:2])
    assert [Length(right=Obedient()).for_group(group)(group.prompt, r) for r in group.responses] == [0.0, 0.0]
    assert Length()(group.prompt, GROUP.responses[0]) == 0.0


def test_scorers_show_the_group_also_where_it_is_scored_in_parts() -> None:
    components = {"length": Length(right=Obedient()), "other": Obedient(weight=0.0)}
    config = RewardConfig(components, time_limit_s=1.0)
    plain = [score.components["length"] for score in InProcessScorer(config).score(GROUP)]
    with IsolatedScorer(config) as scorer:
        assert [score.components["length"] for score in scorer.score(GROUP)] == plain == [0.5, 0.0, 0.25, -0.5]
        broken = replace(GROUP, responses=(response_of("exit", n_tokens=5), *GROUP.responses))
        scores = scorer.score(broken)
    assert scores[0].error
    assert [score.components["length"] for score in scores[1:3]] == [pytest.approx(0.5 - 5 / 45), 0.0]


def test_what_is_no_reward_is_refused() -> None:
    with pytest.raises(UserError, match=r"right: got 'accuracy'; needs a _target_"):
        Length(right="accuracy")
