"""A sink that fails, hangs or refuses, behind the queue; then wandb itself, its process killed and stopped."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.observe.background import BackgroundSink, Patience
from framework.observe.metrics import Load, read_history
from framework.types import SampleRow
from tests.unit.observe.test_wandb_sink import history

QUICK = Patience(queued=20, open_s=5.0, quiet_s=0.05, hang_s=0.1, retry_s=0.01, retry_most_s=0.05, stop_s=1.0)


class Target:
    """Opens itself; fails or hangs for as long as told."""

    name = "sink"

    def __init__(self) -> None:
        self.logged: list[int] = []
        self.opened, self.exit_code = 0, -1
        self.fails: Exception | None = None
        self.refuses: Exception | None = None
        self.free = threading.Event()
        self.free.set()

    def open(self) -> Target:
        if self.refuses is not None:
            raise self.refuses
        self.opened += 1
        return self

    def break_off(self) -> None:
        if not self.free.is_set():
            self.fails = ConnectionResetError("broken off")
            self.free.set()

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if not self.free.wait(60):
            raise AssertionError("nobody broke it off")
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error
        self.logged.append(step)

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None: ...

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None: ...

    def close(self, stage: str) -> None: ...

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    caplog.set_level(logging.INFO, logger="framework.observe")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_failing_sink_is_said_once_and_tried_again_until_nothing_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    target = Target()
    sink = BackgroundSink(target, QUICK)
    target.fails = ConnectionResetError("gone")
    for step in range(5):
        sink.log("grpo", step, {"loss": 1.0})
    sink.finish(0)
    assert target.logged == list(range(5))
    assert (target.opened, target.exit_code) == (2, 0)
    assert caplog.text.count("training goes on") == 1
    assert "failed (ConnectionResetError: gone)" in caplog.text
    assert "answers again" in caplog.text


def test_a_hanging_sink_never_holds_up_the_loop_and_is_broken_off(caplog: pytest.LogCaptureFixture) -> None:
    target = Target()
    sink = BackgroundSink(target, QUICK)
    target.free.clear()
    longest, step = 0.0, 0
    while target.opened < 2:
        begun = time.monotonic()
        sink.log("grpo", step, {"loss": 1.0})
        longest, step = max(longest, time.monotonic() - begun), step + 1
        assert step < 1000
        time.sleep(0.01)
    wait_until(lambda: sink._calls.empty())
    assert longest < 0.1
    sink.finish(0)
    assert target.logged == sorted(set(target.logged))
    assert caplog.text.count("training goes on") == 1
    assert len(target.logged) + sink.dropped == step


def test_the_end_of_a_run_does_not_wait_for_a_sink_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    target = Target()
    sink = BackgroundSink(target, Patience(stop_s=0.2))
    target.free.clear()
    for step in range(3):
        sink.log("grpo", step, {"loss": 1.0})
    begun = time.monotonic()
    sink.finish(1)
    assert time.monotonic() - begun < 3
    assert "has not answered for 0.2 s at the end of the run" in caplog.text


def test_a_sink_that_stays_broken_costs_no_more_than_its_records(caplog: pytest.LogCaptureFixture) -> None:
    target = Target()
    sink = BackgroundSink(target, QUICK)
    target.refuses, target.fails = OSError(28, "No space left on device"), OSError(28, "No space left on device")
    for step in range(50):
        sink.log("grpo", step, {"loss": 1.0})
    sink.finish(1)
    assert target.logged == []
    assert sink.dropped + sink._calls.qsize() >= 50
    assert "sink lacks 50 records of this run; the run's own files have them" in caplog.text


def test_what_it_refuses_at_first_is_the_users_to_mend() -> None:
    target = Target()
    target.refuses = UserError("tracking.mode", "online", "wandb refused")
    with pytest.raises(UserError, match="wandb refused"):
        BackgroundSink(target, QUICK)


WANDB = """
import logging, os, signal, sys, time
from pathlib import Path

import psutil

from framework.observe import tracking
from framework.observe.background import BackgroundSink, Patience
from framework.observe.wandb_sink import TrackingConfig

logging.basicConfig(level=logging.INFO)
patience = Patience(quiet_s=0.5, hang_s=1.5, retry_s=0.1, stop_s=5.0)
tracking.BackgroundSink = lambda target: BackgroundSink(target, patience)
run_dir, number = Path(sys.argv[1]), getattr(signal, sys.argv[2])
with tracking.RunTracking(TrackingConfig(finish_timeout_s=10), run_dir, {}) as run:
    tracker, longest, filler = run.tracker("grpo"), 0.0, "x" * 3000
    for step in range(40):
        if step == 5:
            [service] = [child for child in psutil.Process().children() if child.name().startswith("wandb-core")]
            time.sleep(0.5)  # what was logged so far has arrived
            service.send_signal(number)
        begun = time.monotonic()
        tracker.log(step, {f"{filler}{place}": 1.0 for place in range(100)} if step > 5 else {"loss": float(step)})
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.1)
print("longest", longest)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL", "SIGSTOP"])  # SIGTERM: what `ray job stop` sends to it too
def test_wandbs_process_dies_or_hangs_and_the_run_goes_on(tmp_path: Path, number: str) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path), number],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 40
    assert float(done.stdout.split()[-1]) < 1.0
    assert done.stderr.count("training goes on") == 1
    assert "wandb answers again" in done.stderr
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert history(files[1])[-1]["grpo/step"] == 39  # recorded again, up to the last step
    assert list(read_history(tmp_path).stages["grpo"].series["loss"]) == list(range(6))
