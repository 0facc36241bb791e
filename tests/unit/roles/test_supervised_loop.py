"""The supervised loop over a fake rank group: stretches, stops, losses, elastic ranks; nothing of a step is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.actors.rank_group import RanksLost
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import DamagedState, RunFailed, Stopped
from framework.roles import supervised_loop
from framework.roles.supervised_loop import SupervisedLoop
from framework.roles.supervised_milestones import Milestones
from framework.roles.training_worker import SupervisedRun, Trained
from framework.types import StepResult


@dataclass
class FakeGroup:
    """Counts; dies at the steps in `deaths`, once each."""

    ranks: int
    deaths: set[int]
    log: list[str]
    taken: int = 0
    seconds: float = 0.0

    def start(self) -> None:
        self.log.append(f"start {self.ranks}")

    def call(self, method: str, *args: Any) -> Any:
        if method == "steps":
            return self.taken
        if method == "validate":
            return {"loss": float(self.taken)}
        if method in ("choose", "export_on_the_way"):
            self.log.append(f"{method} {self.taken}") if method != "choose" else None
            return ""
        (until,) = args
        self.log.append(f"{self.taken}-{until}")
        for death in sorted(self.deaths):
            if self.taken < death <= until:
                self.deaths.remove(death)
                raise RanksLost(f"training worker 1 of 2 died at {death}")
        first, self.taken = self.taken, until
        metrics = {"loss": 1.0 / until, "tokens": 10.0}
        return Trained(StepResult(until, metrics, np.ones((1, 2))), 10.0 * (until - first))

    def save(self, directory: Path) -> None:
        (directory / "state").write_text(json.dumps(self.taken))

    def load(self, directory: Path) -> None:
        self.log.append(f"load {directory.name[-3:]} {self.ranks}")
        if (directory / "damaged").exists():
            raise DamagedState(str(directory), "bad", "whole")
        self.taken = json.loads((directory / "state").read_text())

    def export(self, directory: Path) -> None:
        self.log.append(f"export {self.taken}")

    def shutdown(self) -> None:
        pass


@dataclass
class Recorder:
    """A tracker that forgets what is withdrawn."""

    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def log(self, step: int, metrics: Any) -> None:
        self.logged.append((step, dict(metrics)))

    def rewind(self, step: int) -> None:
        self.logged = [item for item in self.logged if item[0] <= step]

    def progress(self, *_: Any) -> None:
        pass

    def expert_load(self, *_: Any) -> None:
        pass


@dataclass
class Loop(SupervisedLoop):
    """Over fake groups."""

    deaths: set[int] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def new_group(self, ranks: int) -> Any:
        return FakeGroup(ranks, self.deaths, self.log)


@pytest.fixture(autouse=True)
def a_room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places for further ranks, as the cluster tells them; fake ranks take none."""
    free = [4]
    monkeypatch.setattr(supervised_loop, "room", lambda asks: free[0])
    monkeypatch.setattr(supervised_loop, "check_room", lambda *_: None)
    monkeypatch.setattr(supervised_loop, "SETTLE_S", 0.0)
    return free


def loop(
    directory: Path, deaths: set[int] | None = None, should_stop: Callable[[], bool] = lambda: False, **changes: Any
) -> Loop:
    values: dict[str, Any] = {
        "model": directory, "engine": DeepSpeedConfig(), "data": None, "out": directory / "out",
        "work_dir": directory, "steps": 25, "validate_every": 15, "checkpoint_every": 10, "seed": 0, "workers": 2,
    } | changes  # fmt: skip
    return Loop(SupervisedRun(**values), Recorder(), should_stop, deaths=deaths or set())  # type: ignore[arg-type]


def test_stretches_end_where_something_is_due(tmp_path: Path) -> None:
    made = loop(tmp_path)
    made.run()
    assert made.log == ["start 2", "0-1", "1-10", "10-15", "15-20", "20-25", "export 25"]
    recorded = made.tracker.logged  # type: ignore[attr-defined]
    assert [(s, min(m)) for s, m in recorded] == [
        (10, "experts/max_over_mean"), (15, "validation/loss"), (20, "experts/max_over_mean"),
        (25, "experts/max_over_mean"), (25, "validation/loss"),
    ]  # fmt: skip
    assert recorded[0][1]["train/loss"] == 0.1


def test_exports_on_the_way_end_a_stretch(tmp_path: Path) -> None:
    made = loop(tmp_path, milestones=Milestones(export_every=12), steps=24)
    made.run()
    assert made.log[1:] == [
        "0-1", "1-10", "10-12", "export_on_the_way 12", "12-15", "15-20", "20-24", "export_on_the_way 24", "export 24",
    ]  # fmt: skip


def test_a_stop_waits_for_a_stretch_of_about_two_seconds(tmp_path: Path) -> None:
    made = loop(tmp_path)
    for step_s, until in ((0.5, 4), (5.0, 1), (1e-6, 10)):
        made._step_s = step_s
        assert made._until(0) == until


def test_a_lost_rank_costs_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    made = loop(tmp_path, {3, 17})
    made.run()
    assert made.log == [
        "start 2", "0-1", "1-10", "start 2", "0-10", "10-15", "15-20", "load 010 2", "10-15", "15-20", "20-25",
        "export 25",
    ]  # fmt: skip
    steps = [step for step, _ in made.tracker.logged]  # type: ignore[attr-defined]
    assert steps == [10, 15, 20, 25, 25]


def test_losses_without_a_checkpoint_between_them_are_counted(tmp_path: Path) -> None:
    made = loop(tmp_path, {2, 3, 4}, max_failures=2)
    with pytest.raises(RunFailed, match=r"died at 4; 2 restarts used up"):
        made.run()
    loop(tmp_path, {2, 12, 22}, max_failures=1).run()


def test_a_stop_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    asked: list[int] = []
    made = loop(tmp_path, should_stop=lambda: bool(asked.append(1)) or len(asked) > 3)  # type: ignore[func-returns-value]
    with pytest.raises(Stopped, match="stopped after 15 of 25 steps"):
        made.run()
    again = loop(tmp_path)
    again.run()
    assert again.log[0] == "load 015 2"
    with pytest.raises(Stopped, match="stopped after 0 of 25"):
        loop(tmp_path / "new", should_stop=lambda: True).run()


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    loop(tmp_path, steps=20).run()
    (tmp_path / "batch_000020" / "damaged").touch()
    made = loop(tmp_path)
    made.run()
    assert made.log[:2] == ["load 020 2", "load 010 2"]


def test_elastic_ranks_follow_the_room(tmp_path: Path, a_room: list[int]) -> None:
    a_room[0] = 1
    made = loop(tmp_path, workers=3, min_workers=1)
    save = FakeGroup.save

    def save_and_make_room(group: FakeGroup, directory: Path) -> None:
        a_room[0] = 0 if group.taken < 20 else 2
        save(group, directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGroup, "save", save_and_make_room)
        made.run()
    assert [entry for entry in made.log if " " in entry] == ["start 1", "load 020 2", "export 25"]
    a_room[0] = 0
    with pytest.raises(RunFailed, match="found no place"):
        loop(tmp_path / "none", workers=3, min_workers=1, deadlines=_hasty()).run()


def _hasty() -> Any:
    from framework.graph.deadlines import Deadlines

    return Deadlines(place=0.5)
