"""Sampler and learner on the same GPUs, one at a time: the order of a turn, and that they never meet there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from framework.actors.rank_group import RanksLost
from framework.errors import Stopped
from framework.roles.rl_batch import TrainBatch
from framework.types import Prompt, SamplingParams
from tests.fake_clients import FakeLearner, FakeLearnerClient, FakeRollouts, make_loop


class Gpus:
    """Who has memory there, and what happened."""

    def __init__(self) -> None:
        self.holders: set[str] = set()
        self.events: list[str] = []

    def take(self, who: str) -> None:
        self.holders.add(who)
        assert self.holders == {who}, f"{self.events[-8:]}: {self.holders} are there at once"


class TurnRollouts(FakeRollouts):
    def __init__(self, gpus: Gpus, **more) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**more)
        self.gpus = gpus

    def submit(self, ticket: int, prompt: Prompt, params: SamplingParams) -> None:
        assert self.gpus.holders == {"sampler"}
        super().submit(ticket, prompt, params)

    def publish(self, version: int, weights: Sequence[object]) -> None:
        super().publish(version, weights)
        self.gpus.take("sampler")
        self.gpus.events.append("wake")

    def sleep(self) -> bool:
        if self.held:
            return False
        if "sampler" in self.gpus.holders:
            self.gpus.holders.remove("sampler")
            self.gpus.events.append("sleep")
        return True


class TurnLearner(FakeLearnerClient):
    def __init__(self, gpus: Gpus, **more) -> None:  # type: ignore[no-untyped-def]
        super().__init__(**more)
        self.gpus = gpus

    def train(self, batch: TrainBatch) -> None:
        self.gpus.events.append("train")
        super().train(batch)

    def offload(self) -> None:
        super().offload()
        self.gpus.holders.discard("learner")
        self.gpus.events.append("offload")

    def start(self) -> None:
        self.gpus.take("learner")
        super().start()

    def load(self, directory: Path) -> None:
        self.gpus.take("learner")
        super().load(directory)

    def _called(self, verb: str) -> FakeLearner:
        if verb in ("save", "publish", "export"):
            self.gpus.events.append(verb)
        if verb != "offload":
            self.gpus.take("learner")
        try:
            return super()._called(verb)
        except RanksLost:
            self.gpus.holders.discard("learner")  # its processes are gone
            raise


def turns(tmp_path: Path, gpus: Gpus, learner: dict | None = None, rollouts: dict | None = None, **more):  # type: ignore[no-untyped-def, type-arg]
    loop = make_loop(
        tmp_path, learner=TurnLearner(gpus, **(learner or {})), rollouts=TurnRollouts(gpus, **(rollouts or {})), **more
    )
    loop.turns = True
    return loop


def test_a_turn_goes_train_save_publish_offload_wake_sleep(tmp_path: Path) -> None:
    gpus = Gpus()
    loop = turns(tmp_path, gpus, steps=4, checkpoint_every=1)
    loop.run()
    start = ["save", "publish", "offload", "wake", "sleep"]
    turn = ["train", "save", "publish", "offload", "wake", "sleep"]
    assert gpus.events == [*start, *turn, *turn, "export"]
    assert [entry.outcome for entry in loop.ledger.consumed] == ["trained"] * 8


def test_they_never_meet_whoever_dies(tmp_path: Path) -> None:
    calls = TurnLearner(Gpus())
    whole = make_loop(tmp_path / "whole", learner=calls, rollouts=TurnRollouts(calls.gpus), steps=8, checkpoint_every=3)
    whole.turns = True
    whole.run()
    assert "offload" in calls.calls
    for call in range(1, len(calls.calls) + 1):
        loop = turns(
            tmp_path / str(call), Gpus(), {"dies_at": (call,)}, {"dies_at": (call, call + 9)}, steps=8,
            checkpoint_every=3,
        )  # fmt: skip
        loop.run()
        assert [entry.outcome for entry in loop.ledger.consumed] == ["trained"] * 16


@pytest.mark.parametrize("moment", range(2, 40, 3))
def test_a_stop_gives_up_what_is_sampled_and_saves_on_free_gpus(tmp_path: Path, moment: int) -> None:
    asked = iter(range(10_000))
    loop = turns(tmp_path, Gpus(), should_stop=lambda: next(asked) >= moment)
    with pytest.raises(Stopped):
        loop.run()
    again = turns(tmp_path, Gpus())
    again.run()
    assert len([entry for entry in again.ledger.consumed if entry.outcome == "trained"]) == 48
