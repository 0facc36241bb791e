from __future__ import annotations

from pathlib import Path

import pytest

from framework.errors import RunFailed
from framework.objectives.dapo import Dapo
from framework.roles.reward_watch import RewardWatch, constant_rewards
from framework.types import RewardScore, ScoredGroup
from tests.contract.sample_rewards import group_of
from tests.fake_clients import FakeRewards, make_loop


def scored(*scores: RewardScore) -> ScoredGroup:
    return ScoredGroup(group_of(*[f"text {place}" for place in range(len(scores))]), scores)


def of(**components: float) -> RewardScore:
    return RewardScore(sum(components.values()), components)


def test_a_failure_is_told_when_its_group_arrives_and_once_for_each_kind() -> None:
    said: list[str] = []
    watch = RewardWatch(said.append)
    failed = RewardScore(0.0, {}, "reward mine timed out after 1 s (/home/me/mine.py:7)")
    assert not watch.arrived(scored(of(a=1.0)))
    assert watch.arrived(scored(of(a=1.0), failed, failed))
    assert watch.arrived(scored(failed))
    assert said == ["a reward failed: prompt p0: reward mine timed out after 1 s (/home/me/mine.py:7)"]


def test_rewards_with_one_value_are_told_after_two_batches_with_three_samples() -> None:
    said: list[str] = []
    watch = RewardWatch(said.append, first=6)
    batch = [scored(of(format=0.0, accuracy=0.0), of(format=0.0, accuracy=1.0)) for _ in range(6)]
    for group in batch[:5]:
        watch.arrived(group)
    assert not said
    for group in batch * 2:
        watch.arrived(group)
    assert len(said) == 1
    assert said[0].startswith("reward format gave 0 to all 12 responses so far (no response meets it)")
    assert said[0].count("prompt p0 (answer ''): 'text 0'") == 3


def test_rewards_that_differ_and_failed_samples_are_no_reason() -> None:
    groups = [scored(of(a=1.0, b=2.0), of(a=1.0, b=3.0), RewardScore(0.0, {}, "failed"))]
    assert [message[:8] for message in constant_rewards(groups)] == ["reward a"]


def test_a_run_stops_before_its_batch_is_whole_when_too_many_samples_fail(tmp_path: Path) -> None:
    rewards = FakeRewards(lambda _: RewardScore(0.0, {}, "reward mine timed out after 1 s"))
    loop = make_loop(tmp_path, rewards=rewards)
    with pytest.raises(RunFailed, match=r"for example: prompt .*: reward mine timed out after 1 s"):
        loop.run()
    assert not loop.ledger.batch_ready()


def test_groups_that_others_replace_are_watched_as_well(tmp_path: Path) -> None:
    """Under dynamic sampling no batch comes together where nothing can be learned: it is told long before the end."""
    said: list[str] = []
    rewards = FakeRewards(lambda _: RewardScore(0.0, {"accuracy": 0.0}))
    loop = make_loop(tmp_path, rewards=rewards, algorithm=Dapo(filter_on="accuracy"), max_refill_batches=5)
    loop._watch.say = said.append
    with pytest.raises(RunFailed, match="no batch has come together"):
        loop.run()
    assert [text[:60] for text in said] == ["reward accuracy gave 0 to all 32 responses so far (no respon"]


def test_rewards_that_differ_between_prompts_alone_teach_nothing(tmp_path: Path) -> None:
    groups = [scored(of(length=float(place)), of(length=float(place))) for place in range(6)]
    (message,) = constant_rewards(groups)
    assert message.startswith("in each of the 6 groups so far all responses have the same reward")
    assert message.count("prompt p0") == 3
    assert constant_rewards([*groups, scored(of(length=1.0), of(length=2.0))]) == []


@pytest.mark.parametrize("batches", [1, 2, 12])
def test_a_run_says_once_what_is_constant(tmp_path: Path, batches: int) -> None:
    said: list[str] = []
    constant = FakeRewards(lambda r: RewardScore(float(r.token_ids.mean()), {"format": 0.0}))
    loop = make_loop(tmp_path, rewards=constant, steps=2 * batches)
    loop._watch.say = said.append
    loop.run()
    assert [text[:20] for text in said] == ["reward format gave 0"]
