"""Who works on a shard and gives no sign of life is killed once; who finishes, or was never there, is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from framework.stages.shard_watch import BEGUN, Maker, ShardWatch, _kill, touching


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def killed() -> list[Maker]:
    return []


def begin(directory: Path, number: int, touched: float = 1.0) -> Path:
    file = directory / f"{BEGUN}{number:05d}"
    file.write_text(json.dumps(asdict(replace(Maker.this_process(), process=1000 + number))))
    os.utime(file, (touched, touched))
    return file


def pass_seconds(watch: ShardWatch, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now += 1
        watch.look()


def test_the_silent_one_is_named_then_killed_once(
    tmp_path: Path, clock: Clock, killed: list[Maker], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework.stages.shard_watch.logger.propagate", True)
    watch = ShardWatch(tmp_path, 60.0, killed.append, clock)
    silent, lives = begin(tmp_path, 3), begin(tmp_path, 4)
    for second in range(62):
        os.utime(lives, (second + 2, second + 2))
        pass_seconds(watch, clock, 1)
        assert not killed or second >= 60
    assert [maker.process for maker in killed] == [1003]
    waiting, replaced = [record.getMessage() for record in caplog.records]
    assert "waiting for the process that makes shard 3" in waiting
    assert "shard 3" in replaced
    assert "process 1003 gave no sign of life for 60 s" in replaced
    pass_seconds(watch, clock, 61)
    assert len(killed) == 2  # the one that was alive; the dead one is not killed again
    os.utime(silent, (99, 99))  # its successor
    pass_seconds(watch, clock, 62)
    assert [maker.process for maker in killed] == [1003, 1004, 1003]


def test_what_was_left_by_the_dead_and_what_is_finished_is_not_judged(
    tmp_path: Path, clock: Clock, killed: list[Maker]
) -> None:
    begin(tmp_path, 1)
    watch = ShardWatch(tmp_path, 60.0, killed.append, clock)
    done = begin(tmp_path, 2)
    pass_seconds(watch, clock, 50)
    done.unlink()
    pass_seconds(watch, clock, 50)
    torn = tmp_path / f"{BEGUN}00005"
    torn.write_text("{")
    pass_seconds(watch, clock, 100)
    assert killed == []


def test_a_driver_that_was_stopped_blames_nobody(tmp_path: Path, clock: Clock, killed: list[Maker]) -> None:
    watch = ShardWatch(tmp_path, 60.0, killed.append, clock)
    begin(tmp_path, 1)
    pass_seconds(watch, clock, 5)
    clock.now += 1000
    pass_seconds(watch, clock, 50)
    assert killed == []


def test_a_process_is_killed_by_its_number_and_its_start() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        maker = Maker.this_process()
        _kill(process.pid, maker.started - 1000)  # another one had this number
        time.sleep(0.2)
        assert process.poll() is None
        from framework.graph.ownership import started_at

        started = started_at(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        _kill(process.pid, started)
        assert process.wait(timeout=60) == -signal.SIGKILL
        _kill(process.pid, started)  # gone


def test_a_file_is_touched_for_as_long_as_it_is_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.stages.shard_watch.TOUCH_EVERY_S", 0.05)
    file = begin(tmp_path, 1)
    with touching(file):
        until = time.monotonic() + 30
        while file.stat().st_mtime == 1.0:
            assert time.monotonic() < until
            time.sleep(0.02)
    os.utime(file, (1, 1))
    time.sleep(0.3)
    assert file.stat().st_mtime == 1.0
