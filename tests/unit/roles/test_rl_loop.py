"""The loop's logic on fakes: milliseconds, and deaths of every role."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.algorithms.mismatch import Mismatch, MismatchConfig, TokenGap
from framework.algorithms.policy_loss import GrpoConfig
from framework.errors import MismatchTooLarge, RunFailed, Stopped, UserError
from framework.roles.ledger import Ledger
from framework.roles.rl_loop import RlConfig, RlLoop
from framework.types import Prompt, Response, RewardScore
from tests.fake_clients import FakeLearnerClient, FakeRewards, FakeRollouts, RecordingTracker

PROMPTS = [Prompt(f"p{i}", f"q{i}", "t", "1", token_ids=(1, 2)) for i in range(12)]


def ones(response: Response) -> RewardScore:
    return RewardScore(float(response.token_ids.mean()), {"ones": 1.0})


def make(tmp_path: Path, **changes) -> RlLoop:  # type: ignore[no-untyped-def]
    values = {"steps": 24, "prompts_per_step": 2, "group_size": 4, "minibatches_per_rollout": 2, "max_tokens": 5}
    names = RlConfig.__dataclass_fields__
    config = RlConfig(**{**values, "checkpoint_every": 2, **{k: v for k, v in changes.items() if k in names}})
    return RlLoop(
        config=config,
        algorithm=changes.get("algorithm", GrpoConfig()),
        ledger=Ledger(PROMPTS, config.prompts_per_batch, config.max_staleness, seed=0),
        rollouts=changes.get("rollouts") or FakeRollouts(),
        rewards=changes.get("rewards") or FakeRewards(ones),
        learner=changes.get("learner") or FakeLearnerClient(),
        tracker=RecordingTracker(),
        directory=tmp_path,
        should_stop=changes.get("should_stop", lambda: False),
    )


def check_trained_once(loop: RlLoop) -> None:
    trained = [entry for entry in loop.ledger.consumed if entry.outcome == "trained"]
    assert len(trained) == 12 * 4  # 12 batches of 4 prompts: 4 epochs of 12
    assert sorted(entry.prompt_id for entry in trained) == sorted([p.id for p in PROMPTS] * 4)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_trains_every_prompt_once_an_epoch_and_never_beyond_staleness(tmp_path: Path, staleness: int) -> None:
    loop = make(tmp_path, max_staleness=staleness)
    loop.run()
    check_trained_once(loop)
    assert isinstance(loop.learner, FakeLearnerClient)
    for batch in loop.learner.trained:
        versions = np.concatenate([s.weight_versions for m in batch.minibatches for s in m.samples])
        assert (batch.version - versions <= staleness).all()
        assert all(minibatch.n_responses == 8 for minibatch in batch.minibatches)
    assert isinstance(loop.tracker, RecordingTracker)
    assert [step for step, _ in loop.tracker.metrics] == list(range(2, 25, 2))
    assert max(m["staleness/max"] for _, m in loop.tracker.metrics) == staleness


@pytest.mark.parametrize("staleness", [0, 2])
def test_survives_the_death_of_each_role(tmp_path: Path, staleness: int) -> None:
    loop = make(
        tmp_path,
        max_staleness=staleness,
        rollouts=FakeRollouts(dies_at=(3, 4, 20)),
        rewards=FakeRewards(ones, dies_at=(2, 17)),
        learner=FakeLearnerClient(dies_at=(1, 6, 7)),
    )
    loop.run()
    check_trained_once(loop)


def test_a_killed_driver_resumes_from_the_checkpoint(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    learner = FakeLearnerClient()
    original, calls = learner.poll, 0

    def poll():  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if learner.batch is not None and learner.batches == 7:
            raise Killed
        return original()

    learner.poll = poll  # type: ignore[method-assign]
    with pytest.raises(Killed):
        make(tmp_path, learner=learner).run()
    loop = make(tmp_path)
    loop.run()
    check_trained_once(loop)
    assert isinstance(loop.learner, FakeLearnerClient)
    assert loop.learner.learner.steps == 24  # the optimizer's count came back with the weights
    assert len(loop.learner.trained) == 6  # batches 7 to 12: the newest checkpoint was of batch 6


def test_stops_when_asked_and_resumes(tmp_path: Path) -> None:
    rewards = FakeRewards(ones)
    first = make(tmp_path, rewards=rewards, should_stop=lambda: rewards.polls > 20)
    with pytest.raises(Stopped, match="the same command resumes"):
        first.run()
    second = make(tmp_path)
    second.run()
    check_trained_once(second)


def test_a_stop_before_the_next_batch_leaves_the_checkpoint_alone(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="stopped after 0 of 24 steps"):
        make(tmp_path, should_stop=lambda: True).run()
    (checkpoint,) = tmp_path.glob("batch_*")
    files = {file: file.stat().st_mtime_ns for file in checkpoint.rglob("*")}
    with pytest.raises(Stopped):
        make(tmp_path, should_stop=lambda: True).run()
    assert {file: file.stat().st_mtime_ns for file in checkpoint.rglob("*")} == files


def test_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    make(tmp_path).run()
    again = make(tmp_path)
    again.run()
    assert isinstance(again.learner, FakeLearnerClient)
    assert again.learner.trained == []


def test_mismatch_gate_names_the_worst_sample(tmp_path: Path) -> None:
    worst = TokenGap("p3", 1, 4, 17, -0.5, -2.5)
    learner = FakeLearnerClient(mismatch=Mismatch(0.5, 2.0, 0.3, 100, worst))
    with pytest.raises(MismatchTooLarge, match="p3"):
        make(tmp_path, learner=learner, mismatch=MismatchConfig(stop_above=0.1)).run()


def test_groups_without_signal_are_kept_out_of_the_loss_or_refilled(tmp_path: Path) -> None:
    def same_for_half(response: Response) -> RewardScore:
        return RewardScore(1.0, {}) if response.token_ids.sum() < 3 else RewardScore(0.0, {})

    kept = make(tmp_path / "keep", rewards=FakeRewards(same_for_half))
    kept.run()
    refilled = make(tmp_path / "refill", rewards=FakeRewards(same_for_half), algorithm=GrpoConfig(zero_std="refill"))
    refilled.run()
    assert isinstance(kept.tracker, RecordingTracker)
    assert any(m["groups/zero_std_share"] > 0 for _, m in kept.tracker.metrics)
    check_trained_once(kept)
    outcomes = [entry.outcome for entry in refilled.ledger.consumed]
    assert outcomes.count("trained") == 48
    assert "no_signal" in outcomes
    assert isinstance(refilled.learner, FakeLearnerClient)
    for batch in refilled.learner.trained:  # every prompt of a refilled batch has signal
        assert sum(len(minibatch.samples) for minibatch in batch.minibatches) == 16


def test_failed_rewards_are_left_out_and_too_many_stop_the_run(tmp_path: Path) -> None:
    calls = 0

    def sometimes(response: Response) -> RewardScore:
        nonlocal calls
        calls += 1
        return RewardScore(0.0, {}, "timed out after 1 s") if calls % 40 == 0 else ones(response)

    loop = make(tmp_path / "few", rewards=FakeRewards(sometimes))
    loop.max_failed_share = 0.1
    loop.run()
    assert isinstance(loop.tracker, RecordingTracker)
    assert any(m["reward/failed_share"] > 0 for _, m in loop.tracker.metrics)
    with pytest.raises(RunFailed, match="timed out"):
        make(tmp_path / "many", rewards=FakeRewards(lambda _: RewardScore(0.0, {}, "timed out after 1 s"))).run()


def test_reference_is_reset_at_its_interval_only(tmp_path: Path) -> None:
    loop = make(tmp_path, algorithm=GrpoConfig(reference_reset_steps=8))
    loop.run()
    assert isinstance(loop.learner, FakeLearnerClient)
    assert loop.learner.references == [0, 8, 16, 24]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"steps": 10, "minibatches_per_rollout": 4}, "stage.grpo.minibatches_per_rollout"),
        ({"group_size": 1}, "stage.grpo.group_size"),
        ({"max_staleness": -1}, "stage.grpo.max_staleness"),
        ({"prompts_per_step": 0}, "stage.grpo.prompts_per_step"),
        ({"temperature": 0.0}, "stage.grpo.temperature"),
    ],
)
def test_batch_numbers_that_do_not_work_are_refused(changes: dict[str, float], where: str) -> None:
    with pytest.raises(UserError, match=where):
        RlConfig(**changes)  # type: ignore[arg-type]
