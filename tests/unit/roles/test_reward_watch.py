from __future__ import annotations

from pathlib import Path

import pytest

from framework.errors import RunFailed
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
    watch = RewardWatch(said.append)
    batch = [scored(of(format=0.0, accuracy=place % 2)) for place in range(6)]
    watch.trained(batch)
    assert not said
    for _ in range(3):
        watch.trained(batch)
    assert len(said) == 1
    assert said[0].startswith("reward format gave 0 to all 12 responses of the first 2 batches (no response meets it)")
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
