"""What the loop says while it runs: to the tracker, to the terminal and to its roles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.algorithms.mismatch import Mismatch, MismatchConfig
from framework.engines.lr_schedule import StepwiseValue
from framework.objectives.grpo import Grpo
from framework.objectives.rloo import Rloo
from framework.roles.rl_config import RlConfig
from framework.types import ResponseGroup, SamplingParams
from tests.fake_clients import FakeLearnerClient, FakeRewards, FakeRollouts, RecordingTracker, make_loop, ones


class Told(RecordingTracker):
    """Also keeps progress, loads and rewinds, and which step each table of samples is of."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, int, str]] = []
        self.loads: list[tuple[int, list[list[float]]]] = []
        self.rewound: list[int] = []
        self.tables: list[int] = []

    def progress(self, done, total, text="") -> None:  # type: ignore[no-untyped-def]
        self.shown.append((done, total, text))

    def expert_load(self, step, load_LE) -> None:  # type: ignore[no-untyped-def]
        self.loads.append((step, load_LE.tolist()))

    def rewind(self, step) -> None:  # type: ignore[no-untyped-def]
        self.rewound.append(step)

    def samples(self, step, rows) -> None:  # type: ignore[no-untyped-def]
        super().samples(step, rows)
        self.tables.append(step)


def test_a_batch_is_reported_with_its_numbers(tmp_path: Path) -> None:
    tracker, learner = Told(), FakeLearnerClient(mismatch=Mismatch(0.001, 0.002, 0.0, tokens=3))
    loop = make_loop(tmp_path, steps=4, tracker=tracker, learner=learner)
    loop.run()
    assert [(done, total) for done, total, _ in tracker.shown] == [(2, 4), (4, 4)]
    for (step, metrics), (_, _, text), batch in zip(tracker.metrics, tracker.shown, learner.trained, strict=True):
        seconds = metrics["time/step_s"]
        rewards = f"reward {metrics['reward/mean']:.3f}  length {metrics['response/length_mean']:.1f}"
        assert text == f"{rewards}  {seconds:.2f} s a batch  "
        tokens = sum(minibatch.n_tokens for minibatch in batch.minibatches)
        assert metrics["sampled_tokens_per_s"] == pytest.approx(tokens / seconds)
        assert metrics["trained_tokens_per_s"] == pytest.approx(10 / seconds)  # what the learner said of itself
        assert metrics["time/train_s"] == 0.1
        assert metrics["mismatch/tokens"] == 3
        assert metrics["experts/max_over_mean"] == 1  # two experts of equal load
        assert (step, [[tokens / 2] * 2]) in tracker.loads, "summed over the batch's steps"
        assert metrics["staleness/max"] == 0, "against the version that trained on it"
        assert np.isfinite(list(metrics.values())).all()


@pytest.mark.parametrize(("every", "tables"), [(1, [2, 4, 6, 8, 10]), (2, [2, 6, 10]), (3, [2, 8]), (9, [2])])
def test_samples_are_shown_from_the_first_batch_on_at_their_interval(
    tmp_path: Path, every: int, tables: list[int]
) -> None:
    tracker = Told()
    make_loop(tmp_path, steps=10, samples_every=every, tracker=tracker).run()
    assert tracker.tables == tables


@pytest.mark.parametrize(("every", "saved"), [(2, 7), (5, 4), (12, 2), (50, 2)])
def test_checkpoints_are_made_at_the_start_at_their_interval_and_at_the_end(
    tmp_path: Path, every: int, saved: int
) -> None:
    learner = FakeLearnerClient()
    make_loop(tmp_path, checkpoint_every=every, learner=learner).run()
    assert learner.calls.count("save") == saved


def test_a_resumed_run_takes_its_tracker_back_to_the_checkpoint(tmp_path: Path) -> None:
    tracker = Told()
    learner = FakeLearnerClient(dies_on=lambda verb, steps: verb == "poll" and steps == 6 and not tracker.rewound)
    make_loop(tmp_path, tracker=tracker, learner=learner).run()
    assert tracker.rewound == [4]  # batch 3's death at a checkpoint every 2 batches


class Forgetful(FakeRollouts):
    """Counts what it was told to forget."""

    forgotten = 0

    def forget(self) -> None:
        super().forget()
        self.forgotten += 1


class ForgetfulRewards(FakeRewards):
    """The same of scores."""

    forgotten = 0

    def forget(self) -> None:
        super().forget()
        self.forgotten += 1


def test_a_learners_death_is_said_and_everyone_forgets_what_was_under_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts, rewards = Forgetful(), ForgetfulRewards(ones)
    learner = FakeLearnerClient(dies_at=(6,))
    make_loop(tmp_path, rollouts=rollouts, rewards=rewards, learner=learner).run()
    said = capsys.readouterr().out.splitlines()
    assert said == ["learner lost (rank 0 died); restarting it from the newest checkpoint"]
    assert (rollouts.forgotten, rewards.forgotten) == (1, 1)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_no_worker_gets_more_than_it_takes_and_nothing_that_is_not_trained(tmp_path: Path, slots: int) -> None:
    class Bounded(FakeRollouts):
        most = 0

        def submit(self, *call) -> None:  # type: ignore[no-untyped-def]
            super().submit(*call)
            self.most = max(self.most, len(self.held))

    rollouts = Bounded(slots)
    make_loop(tmp_path, rollouts=rollouts, max_staleness=3).run()
    assert rollouts.most == min(slots, 16)  # 4 prompts a batch, up to 3 batches ahead
    assert [ticket for ticket, _ in rollouts.issued] == list(range(48))


def test_the_learner_gets_what_the_settings_say(tmp_path: Path) -> None:
    gate = MismatchConfig()
    for probe, expected in ((0, 0), (5, 5), (99, 16)):
        learner = FakeLearnerClient()
        loop = make_loop(tmp_path / str(probe), steps=6, probe_responses=probe, mismatch=gate, learner=learner)
        loop.run()
        assert [len(batch.probe) for batch in learner.trained] == [expected] * 3
        assert [batch.version for batch in learner.trained] == [0, 1, 2]
        assert all(batch.gate is gate and len(batch.minibatches) == 2 for batch in learner.trained)
    seeds = [FakeLearnerClient(), FakeLearnerClient()]
    for seed, learner in enumerate(seeds):
        make_loop(tmp_path / f"seed{seed}", steps=2, learner=learner, seed=seed).run()
    order = [[s.prompt_id for m in learner.trained[0].minibatches for s in m.samples] for learner in seeds]
    assert order[0] != order[1]


def test_a_group_of_a_dead_reward_worker_is_scored_again_as_it_was_sampled(tmp_path: Path) -> None:
    class Seen(FakeRewards):
        def __init__(self) -> None:
            super().__init__(ones, dies_at=(2, 3))
            self.groups: dict[int, list[ResponseGroup]] = {}

        def submit(self, ticket: int, group: ResponseGroup) -> None:
            super().submit(ticket, group)
            self.groups.setdefault(ticket, []).append(group)

    rewards = Seen()
    loop = make_loop(tmp_path, rewards=rewards, steps=4)
    loop.run()
    assert max(map(len, rewards.groups.values())) > 1
    assert all(group is groups[0] for groups in rewards.groups.values() for group in groups)
    assert loop._groups == {}, "what is scored is not kept"


def test_the_reference_is_there_from_the_start_only_where_there_is_a_kl_term(tmp_path: Path) -> None:
    for algorithm, resets in ((Grpo(kl_coef=0.1), [0]), (Grpo(kl_coef=0.0), []), (Rloo(), [0])):
        learner = FakeLearnerClient()
        make_loop(tmp_path / str(len(list(tmp_path.iterdir()))), algorithm=algorithm, learner=learner, steps=4).run()
        assert learner.references == resets


def test_batch_arithmetic_by_hand() -> None:
    config = RlConfig(steps=24, prompts_per_step=3, minibatches_per_rollout=4, group_size=5)
    assert (config.batches, config.prompts_per_batch, config.longest) == (6, 12, 32_768)
    longer = RlConfig(
        steps=24, minibatches_per_rollout=4, temperature=0.7, group_size=5, max_tokens=StepwiseValue((8, 16), (9,))
    )
    assert longer.longest == 16
    assert longer.sampling(8, 3) == SamplingParams(0.7, 1.0, 8, 5, 3)
    assert longer.sampling(9) == SamplingParams(0.7, 1.0, 16, 5, None)
    assert RlConfig(max_tokens=1).longest == 1
