"""Half of the loop, on fakes: what is trained from saved groups is what the run that saved them trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.artifacts import RolloutSet
from framework.data.rollouts import HEADER, RolloutHeader, read_rollouts
from framework.errors import Stopped, UserError
from framework.objectives.dapo import Dapo
from framework.objectives.grpo import Grpo
from framework.objectives.policy import PolicyObjective
from framework.roles.ledger import Ledger
from framework.roles.ray_clients import RayRollouts
from framework.roles.recorded import FixedPolicy, RecordedRewards, RecordedRollouts, RolloutSaver
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_config import RlConfig
from framework.types import RewardScore
from tests.fake_clients import PROMPTS, FakeLearnerClient, FakeRewards, FakeRollouts, make_loop

HEADER_OF_RUN = RolloutHeader(4, "tokens", 1.0, "here")


def saver(directory: Path) -> RolloutSaver:
    return RolloutSaver(directory, HEADER_OF_RUN)


def replayed(tmp_path: Path, name: str, saved: Path, **changes):  # type: ignore[no-untyped-def]
    """A loop that trains on what lies in `saved`, run to its end."""
    groups = read_rollouts(RolloutSet(saved))
    loop = make_loop(tmp_path / name, rollouts=RecordedRollouts(groups), rewards=RecordedRewards(groups), **changes)
    prompts = [group.scored.group.prompt for group in groups]
    loop.ledger = Ledger(prompts, loop.config.prompts_per_batch, loop.config.max_staleness, 0, once=True)
    loop.run()
    return loop


def same(ours: TrainBatch, theirs: TrainBatch) -> None:
    assert (ours.version, ours.gate) == (theirs.version, theirs.gate)
    pairs = [(ours.probe, theirs.probe)]
    pairs += [(a.samples, b.samples) for a, b in zip(ours.minibatches, theirs.minibatches, strict=True)]
    for mine, its in pairs:
        for a, b in zip(mine, its, strict=True):
            assert (a.prompt_id, a.advantage) == (b.prompt_id, b.advantage)
            for name in ("prompt_ids", "response_ids", "sampler_logprobs", "weight_versions"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert getattr(a, name).dtype == getattr(b, name).dtype


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("algorithm", [Grpo(), Dapo(filter_on="ones")])
def test_saved_groups_are_trained_on_as_they_were(tmp_path: Path, staleness: int, algorithm: PolicyObjective) -> None:
    rewards = FakeRewards(lambda r: RewardScore(float(r.token_ids.mean() > 0.4), {"ones": float(r.token_ids[0])}))
    changes = {"max_staleness": staleness, "algorithm": algorithm}
    live = make_loop(tmp_path / "live", rewards=rewards, saver=saver(tmp_path / "saved"), **changes)
    live.run()
    assert len(list((tmp_path / "saved").glob("batch_*.parquet"))) == 12
    again = replayed(tmp_path, "again", tmp_path / "saved", **changes)
    assert isinstance(live.learner, FakeLearnerClient)
    assert isinstance(again.learner, FakeLearnerClient)
    for ours, theirs in zip(again.learner.trained, live.learner.trained, strict=True):
        same(ours, theirs)
    assert again.learner.learner.logit == live.learner.learner.logit
    outcomes = [[(e.prompt_id, e.batch, e.outcome) for e in sorted(loop.ledger.consumed, key=lambda e: e.ticket)]
                for loop in (again, live)]  # fmt: skip
    assert outcomes[0] == outcomes[1]


def test_a_training_from_files_stops_dies_and_resumes_as_any_other(tmp_path: Path) -> None:
    live = make_loop(tmp_path / "live", saver=saver(tmp_path / "saved"))
    live.run()
    again = replayed(tmp_path, "again", tmp_path / "saved", learner=FakeLearnerClient(dies_at=(9, 20)))
    assert again.learner.learner.logit == live.learner.learner.logit  # type: ignore[union-attr, attr-defined]
    trained: list[object] = []
    with pytest.raises(Stopped):
        replayed(tmp_path, "stopped", tmp_path / "saved", learner=(first := FakeLearnerClient()),
                 should_stop=lambda: len(first.trained) > 4)  # fmt: skip
    trained += first.trained
    second = replayed(tmp_path, "stopped", tmp_path / "saved")
    trained += second.learner.trained
    for ours, theirs in zip(trained, live.learner.trained, strict=True):  # type: ignore[attr-defined]
        same(ours, theirs)  # type: ignore[arg-type]


def test_a_resumed_run_writes_anew_what_it_samples_anew(tmp_path: Path) -> None:
    learner = FakeLearnerClient()
    first = make_loop(tmp_path / "run", saver=saver(tmp_path / "saved"), learner=learner, checkpoint_every=3)
    poll = learner.poll

    def killed():  # type: ignore[no-untyped-def]
        if len(learner.trained) == 5 and learner.batch is not None:
            raise KeyboardInterrupt
        return poll()

    learner.poll = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert len(list((tmp_path / "saved").glob("batch_*"))) == 6
    changes = {"saver": saver(tmp_path / "saved"), "checkpoint_every": 3, "rollouts": FakeRollouts(seed=9)}
    again = make_loop(tmp_path / "run", **changes)
    again.run()
    groups = read_rollouts(RolloutSet(tmp_path / "saved"))
    assert [group.ticket for group in groups] == list(range(48))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"save_rollouts: got .*saved'; holds the responses of here: choose another"):
        RolloutSaver(tmp_path / "saved", RolloutHeader(4, "tokens", 1.0, "there")).begin(0)


def test_sampling_alone_goes_through_the_prompts_and_leaves_the_base_as_it_is(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    loop = make_loop(tmp_path / "run", learner=FixedPolicy(base), saver=saver(tmp_path / "saved"))
    loop.run()
    groups = read_rollouts(RolloutSet(tmp_path / "saved"))
    assert len(groups) == 48
    assert {int(v) for g in groups for r in g.scored.group.responses for v in r.weight_versions} <= set(range(12))
    assert (loop.policy / "config.json").read_text() == "{}"
    trained = replayed(tmp_path, "trained", tmp_path / "saved")  # and a learner can begin with them
    assert len(trained.learner.trained) == 12


def test_workers_serve_what_they_started_with_where_nothing_is_published(tmp_path: Path) -> None:
    class Pool:
        calls: list[str] = []

        def ready(self) -> list[int]:
            return [0, 1]

        def load(self, worker: int) -> int:
            return 0

        def poll(self, timeout_s: float) -> list[object]:
            return []

        def call(self, worker: int, method: str, *args: object, tag: object) -> None:
            self.calls.append(method)

    pool = Pool()
    rollouts = RayRollouts(pool, 2)  # type: ignore[arg-type]
    assert rollouts.free_slots() == 0
    rollouts.publish(0, ())
    assert (rollouts.synced(), rollouts.free_slots(), pool.calls) == (True, 4, [])
    rollouts.forget()
    assert rollouts.free_slots() == 0


def test_a_once_ledger_visits_each_prompt_in_its_order_and_then_ends() -> None:
    ledger = Ledger(PROMPTS[:6], 2, 3, 0, once=True)
    assert ledger.to_issue(0) == 6  # of 8 that staleness allows
    assert [ledger.prompt(ledger.issue(0)).id for _ in range(6)] == [prompt.id for prompt in PROMPTS[:6]]
    assert ledger.to_issue(0) == 0
    ledger.give_back([3])
    assert ledger.to_issue(0) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample_only": True}, "stage.grpo.sample_only: got True; needs stage.grpo.save_rollouts=DIR"),
        (
            {"rollouts_from": "a", "save_rollouts": "b"},
            "save_rollouts: got 'b'; must be left out with .*from",
        ),
        ({"rollouts_from": "a", "evaluate_every": 16}, "stage.grpo.evaluate_every: got 16; must be left out with"),
        (
            {"sample_only": True, "save_rollouts": "a", "export_every": 16},
            "export_every: got 16; must be left",
        ),
    ],
)
def test_what_half_of_the_loop_cannot_do_is_refused(changes: dict[str, object], says: str) -> None:
    values = {name: Path(value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(UserError, match=says):
        RlConfig(**values)  # type: ignore[arg-type]


def test_the_header_names_who_sampled(tmp_path: Path) -> None:
    saver(tmp_path / "saved").begin(0)
    assert (tmp_path / "saved" / HEADER).is_file()
    with pytest.raises(UserError, match=r"no batch_\*.parquet"):
        read_rollouts(RolloutSet(tmp_path / "saved"))
