"""The loop's logic on fakes: milliseconds, and deaths of every role."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.algorithms.mismatch import Mismatch, MismatchConfig, TokenGap
from framework.engines.lr_schedule import StepwiseValue
from framework.errors import MismatchTooLarge, RunFailed, Stopped, UserError
from framework.objectives.dapo import Dapo
from framework.objectives.grpo import Grpo
from framework.roles.rl_config import RlConfig
from framework.roles.rl_loop import RlLoop
from framework.types import Response, RewardScore
from tests.fake_clients import PROMPTS, FakeLearnerClient, FakeRewards, FakeRollouts, RecordingTracker, make_loop, ones


def check_trained_once(loop: RlLoop) -> None:
    trained = [entry for entry in loop.ledger.consumed if entry.outcome == "trained"]
    assert len(trained) == 12 * 4  # 12 batches of 4 prompts: 4 epochs of 12
    assert sorted(entry.prompt_id for entry in trained) == sorted([p.id for p in PROMPTS] * 4)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_trains_every_prompt_once_an_epoch_and_never_beyond_staleness(tmp_path: Path, staleness: int) -> None:
    loop = make_loop(tmp_path, max_staleness=staleness)
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
    loop = make_loop(
        tmp_path,
        max_staleness=staleness,
        rollouts=FakeRollouts(dies_at=(3, 4, 20)),
        rewards=FakeRewards(ones, dies_at=(2, 17)),
        learner=FakeLearnerClient(dies_at=(6, 25, 29)),
    )
    loop.run()
    check_trained_once(loop)


@pytest.mark.parametrize("first", [True, False])
def test_a_learner_may_die_in_any_call(tmp_path: Path, first: bool) -> None:
    """From its start to the export of what it learned, and again in the call after its restart."""
    calls = FakeLearnerClient()
    make_loop(tmp_path / "whole", learner=calls, steps=8, checkpoint_every=3).run()
    assert set(calls.calls) == {"start", "reset_reference", "save", "publish", "train", "poll", "export"}
    for call in range(1, len(calls.calls) + 1):
        learner = FakeLearnerClient(dies_at=(call,) if first else (call, call + 1))
        loop = make_loop(tmp_path / str(call), learner=learner, steps=8, checkpoint_every=3)
        loop.run()
        assert [entry.outcome for entry in loop.ledger.consumed] == ["trained"] * 16
        assert learner.learner is not None
        assert (learner.learner.steps, learner.calls[-1]) == (8, "export")


def test_learner_deaths_count_while_nothing_new_is_trained(tmp_path: Path) -> None:
    deaths = list[int]()

    def often(verb: str, steps: int) -> bool:  # once at each batch: progress all the same
        if verb == "poll" and steps not in deaths:
            deaths.append(steps)
            return True
        return False

    make_loop(tmp_path / "progress", learner=FakeLearnerClient(dies_on=often), max_learner_restarts=1).run()
    assert len(deaths) == 12

    # batches before it are trained again and again, which is no progress
    always = FakeLearnerClient(dies_on=lambda verb, steps: verb == "poll" and steps == 6)
    with pytest.raises(RunFailed, match="died 4 times without a batch trained in between; the last time: rank 0 died"):
        make_loop(tmp_path / "none", learner=always, checkpoint_every=12, max_learner_restarts=3).run()
    assert always.calls.count("load") == 3


def test_a_stop_while_the_learner_is_dead_leaves_a_run_to_resume(tmp_path: Path) -> None:
    rewards = FakeRewards(ones)
    learner = FakeLearnerClient(dies_on=lambda verb, steps: verb == "save" and steps == 2)
    with pytest.raises(Stopped, match="stopped after 0 of 24 steps"):
        make_loop(tmp_path, learner=learner, rewards=rewards, should_stop=lambda: bool(learner.trained)).run()
    loop = make_loop(tmp_path)
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
        if learner.batch is not None and len(learner.trained) == 7:
            raise Killed
        return original()

    learner.poll = poll  # type: ignore[method-assign]
    with pytest.raises(Killed):
        make_loop(tmp_path, learner=learner).run()
    loop = make_loop(tmp_path)
    loop.run()
    check_trained_once(loop)
    assert isinstance(loop.learner, FakeLearnerClient)
    assert loop.learner.learner is not None
    assert loop.learner.learner.steps == 24  # the optimizer's count came back with the weights
    assert len(loop.learner.trained) == 6  # batches 7 to 12: the newest checkpoint was of batch 6


def test_stops_when_asked_and_resumes(tmp_path: Path) -> None:
    rewards = FakeRewards(ones)
    first = make_loop(tmp_path, rewards=rewards, should_stop=lambda: rewards.polls > 20)
    with pytest.raises(Stopped, match="the same command resumes"):
        first.run()
    second = make_loop(tmp_path)
    second.run()
    check_trained_once(second)


def test_a_stop_before_the_next_batch_leaves_the_checkpoint_alone(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="stopped after 0 of 24 steps"):
        make_loop(tmp_path, should_stop=lambda: True).run()
    checkpoint = max(tmp_path.glob("batch_*"))
    files = {file: file.stat().st_mtime_ns for file in checkpoint.rglob("*")}
    with pytest.raises(Stopped):
        make_loop(tmp_path, should_stop=lambda: True).run()
    assert {file: file.stat().st_mtime_ns for file in checkpoint.rglob("*")} == files


def test_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    make_loop(tmp_path).run()
    again = make_loop(tmp_path)
    again.run()
    assert isinstance(again.learner, FakeLearnerClient)
    assert again.learner.trained == []


def test_mismatch_gate_names_the_worst_sample(tmp_path: Path) -> None:
    worst = TokenGap("p3", 1, 4, 17, -0.5, -2.5)
    learner = FakeLearnerClient(mismatch=Mismatch(0.5, 2.0, 0.3, 100, worst))
    with pytest.raises(MismatchTooLarge, match="p3"):
        make_loop(tmp_path, learner=learner, mismatch=MismatchConfig(stop_above=0.1)).run()
    assert learner.trained == []


@pytest.mark.parametrize("staleness", [0, 1])
def test_seeds_belong_to_run_version_and_ticket_whatever_died(tmp_path: Path, staleness: int) -> None:
    def seeds(name: str, seed: int = 0, dies_at: tuple[int, ...] = ()) -> dict[tuple[int, int], set[int | None]]:
        rollouts = FakeRollouts(dies_at=dies_at)
        make_loop(tmp_path / name, rollouts=rollouts, seed=seed, max_staleness=staleness).run()
        return rollouts.seeds

    whole = seeds("whole")
    given = [seed for found in whole.values() for seed in found]
    assert len(given) == len(whole) == len(set(given)) == 48  # one a ticket, no two alike
    again = seeds("killed", dies_at=(2, 5))  # tickets are issued twice, with the seed that they had
    assert all(len(found) == 1 for found in again.values())
    assert {key: again[key] for key in whole if key in again}.items() <= whole.items()
    other = [seed for found in seeds("other", seed=1).values() for seed in found]
    assert not set(other) & set(given)


def test_rewards_that_are_not_finite_count_as_failed(tmp_path: Path) -> None:
    def sometimes(response: Response) -> RewardScore:
        return RewardScore(float("inf")) if response.token_ids.sum() == 4 else ones(response)

    loop = make_loop(tmp_path, rewards=FakeRewards(sometimes))
    loop.max_failed_share = 0.3
    loop.run()
    assert isinstance(loop.tracker, RecordingTracker)
    assert any(m["reward/failed_share"] > 0 for _, m in loop.tracker.metrics)
    assert all(np.isfinite(m["reward/mean"]) for _, m in loop.tracker.metrics)
    with pytest.raises(RunFailed, match=r"4 of 4 samples.*add up to nan, which is not a finite number"):
        make_loop(tmp_path / "all", rewards=FakeRewards(lambda _: RewardScore(float("nan")))).run()


def test_groups_without_signal_are_trained_on_or_refilled(tmp_path: Path) -> None:
    def same_for_half(response: Response) -> RewardScore:
        return RewardScore(1.0, {}) if response.token_ids.sum() < 3 else RewardScore(0.0, {})

    kept = make_loop(tmp_path / "keep", rewards=FakeRewards(same_for_half))
    kept.run()
    refilled = make_loop(tmp_path / "refill", rewards=FakeRewards(same_for_half), algorithm=Dapo(filter_on="accuracy"))
    refilled.run()
    assert isinstance(kept.tracker, RecordingTracker)
    assert any(m["groups/zero_std_share"] > 0 for _, m in kept.tracker.metrics)
    assert isinstance(kept.learner, FakeLearnerClient)
    for trained in kept.learner.trained:  # KL term, denominators and metrics are of all
        assert [len(minibatch.samples) for minibatch in trained.minibatches] == [8, 8]
    check_trained_once(kept)
    outcomes = [entry.outcome for entry in refilled.ledger.consumed]
    assert outcomes.count("trained") == 48
    assert "no_signal" in outcomes
    assert isinstance(refilled.learner, FakeLearnerClient)
    for batch in refilled.learner.trained:  # every prompt of a refilled batch has signal
        assert all(sample.advantage for minibatch in batch.minibatches for sample in minibatch.samples)


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize(
    ("score", "says"),
    [
        (RewardScore(0.0, {}, "the verifier is gone"), r"16 of 16 samples.*the verifier is gone"),
        (RewardScore(1.0, {}), r"max_refill_batches=3 of 4 prompts.*filter_on=null"),
    ],
)
def test_refilling_ends_where_no_group_will_ever_have_signal(
    tmp_path: Path, staleness: int, score: RewardScore, says: str
) -> None:
    rewards = FakeRewards(lambda _: score)
    changes = {"max_refill_batches": 3, "max_staleness": staleness, "algorithm": Dapo()}
    loop = make_loop(tmp_path, rewards=rewards, **changes)
    with pytest.raises(RunFailed, match=says):
        loop.run()
    assert len(loop.ledger.scored()) <= 3 * 4 * (staleness + 1) + 1


def test_failures_in_groups_that_were_replaced_count(tmp_path: Path) -> None:
    count = 0

    def every_fifth_group(response: Response) -> RewardScore:
        nonlocal count
        count += 1
        return RewardScore(0.0, {}, "timed out") if (count - 1) // 4 % 5 == 0 else RewardScore(float(count), {})

    refill = Dapo()
    loop = make_loop(tmp_path / "allowed", rewards=FakeRewards(every_fifth_group), algorithm=refill)
    loop.max_failed_share = 0.4
    loop.run()
    assert isinstance(loop.tracker, RecordingTracker)
    shares = [metrics["reward/failed_share"] for _, metrics in loop.tracker.metrics]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.05)
    assert shares == pytest.approx([metrics["groups/zero_std_share"] for _, metrics in loop.tracker.metrics])
    with pytest.raises(RunFailed, match=r"4 of 20 samples have no reward"):
        make_loop(tmp_path / "refused", rewards=FakeRewards(every_fifth_group), algorithm=refill).run()


def test_failed_rewards_are_left_out_and_too_many_stop_the_run(tmp_path: Path) -> None:
    calls = 0

    def sometimes(response: Response) -> RewardScore:
        nonlocal calls
        calls += 1
        return RewardScore(0.0, {}, "timed out after 1 s") if calls % 40 == 0 else ones(response)

    loop = make_loop(tmp_path / "few", rewards=FakeRewards(sometimes))
    loop.max_failed_share = 0.1
    loop.run()
    assert isinstance(loop.tracker, RecordingTracker)
    assert any(m["reward/failed_share"] > 0 for _, m in loop.tracker.metrics)
    with pytest.raises(RunFailed, match="timed out"):
        make_loop(tmp_path / "many", rewards=FakeRewards(lambda _: RewardScore(0.0, {}, "timed out after 1 s"))).run()


def test_reference_is_reset_at_its_interval_only(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, algorithm=Grpo(reference_reset_steps=8))
    loop.run()
    assert isinstance(loop.learner, FakeLearnerClient)
    assert loop.learner.references == [0, 8, 16, 24]
    never = make_loop(tmp_path / "never", algorithm=Grpo(reference_reset_steps=0))
    never.run()
    assert isinstance(never.learner, FakeLearnerClient)
    assert never.learner.references == [0]


def test_responses_may_be_longer_from_a_step_on(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, max_tokens=StepwiseValue((5, 9), (9,)))  # two steps a version: in the middle of a batch
    loop.run()
    assert isinstance(loop.rollouts, FakeRollouts)
    assert loop.rollouts.limits == {version: {5 if version < 5 else 9} for version in range(12)}
    assert loop.config.longest == 9


def test_a_mismatch_that_was_not_measured_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = make_loop(tmp_path, steps=2, learner=FakeLearnerClient(mismatch=Mismatch()))
    loop.run()
    assert isinstance(loop.tracker, RecordingTracker)
    assert loop.tracker.metrics[0][1]["mismatch/tokens"] == 0
    assert "step 2: mismatch not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"steps": 10, "minibatches_per_rollout": 4}, "stage.grpo.minibatches_per_rollout"),
        ({"group_size": 0}, "RlConfig.group_size"),
        ({"max_staleness": -1}, "RlConfig.max_staleness"),
        ({"prompts_per_step": 0}, "RlConfig.prompts_per_step"),
        ({"temperature": 0.0}, "RlConfig.temperature"),
        ({"samples_every": 0}, "RlConfig.samples_every"),
        ({"probe_responses": -1}, "RlConfig.probe_responses"),
        ({"max_learner_restarts": -1}, "RlConfig.max_learner_restarts"),
        ({"max_refill_batches": 0}, "RlConfig.max_refill_batches"),
        ({"max_tokens": 0}, "RlConfig.max_tokens"),
        ({"top_p": 0.0}, "RlConfig.top_p"),
        ({"top_p": 0.95}, "RlConfig.top_p: got 0.95; must be 1"),
        ({"top_p": 1.5}, "RlConfig.top_p"),
    ],
)
def test_batch_numbers_that_do_not_work_are_refused(changes: dict[str, float], where: str) -> None:
    with pytest.raises(UserError, match=where):
        RlConfig(**changes)  # type: ignore[arg-type]


def test_a_damaged_newest_checkpoint_costs_its_batches_and_no_prompt_twice(tmp_path: Path) -> None:
    whole = make_loop(tmp_path / "whole", checkpoint_every=3)
    whole.run()
    stopped = make_loop(tmp_path / "run", checkpoint_every=3)
    stopped.should_stop = lambda: stopped.ledger.batches_trained >= 9
    with pytest.raises(Stopped):
        stopped.run()
    file = tmp_path / "run" / "batch_000009" / "ledger.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[-1]]) + "\n")
    again = make_loop(tmp_path / "run", checkpoint_every=3)
    again.run()
    assert len(again.learner.trained) == 6  # batches 7 to 12, again from the checkpoint of batch 6
    assert [(e.ticket, e.batch) for e in again.ledger.consumed] == [(e.ticket, e.batch) for e in whole.ledger.consumed]
