"""One driver a run: two real processes, a killed one, one on another host, one that is frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from framework.errors import RunFailed, UserError
from framework.graph.ownership import OWNER, Owner, Pulse, own, owned

REPOSITORY = Path(__file__).parents[3]
QUICK = Pulse(every_s=0.1, dead_after_s=1.0)
HOLD = """
import sys, time
from pathlib import Path
from framework.graph.ownership import Pulse, owned
with owned(Path(sys.argv[1]), lambda other: print("lost to", other.process, flush=True), Pulse(0.1, 1.0)) as mine:
    print("mine", flush=True)
    sys.stdin.read()
"""


def nothing(other: Owner | None) -> None:
    raise AssertionError(other)


@contextmanager
def holder(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the directory until its input ends."""
    command = [sys.executable, "-c", HOLD, str(run_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        if process.poll() is None:
            process.kill()


def elsewhere(run_dir: Path) -> Path:
    """The record of an owner on another host."""
    (run_dir / OWNER).mkdir(parents=True)
    file = run_dir / OWNER / "000004.json"
    owner = replace(Owner.this_process(), host="node7", system="another kernel")
    file.write_text(json.dumps(asdict(owner)))
    return file


def test_a_second_process_is_told_who_has_the_run_and_gets_it_when_the_first_is_done(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match=rf"process {process.pid} on \S+ since 20.* UTC.*choose another run=NAME"):
            own(tmp_path, nothing, QUICK)
        process.communicate("")
        assert process.returncode == 0
    with owned(tmp_path, nothing, QUICK):
        pass


def test_what_a_killed_process_had_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    begun = time.monotonic()
    with owned(tmp_path, nothing, QUICK) as mine:
        mine.check()
        assert f"taken over from process {process.pid}" in caplog.text
        assert [file.name for file in (tmp_path / OWNER).iterdir()] == ["000002.json"]
    assert time.monotonic() - begun < 1.0


def test_of_many_that_find_a_dead_owner_one_gets_the_run(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
    outcomes: list[str] = []
    barrier = threading.Barrier(16)

    def start() -> None:
        barrier.wait()
        try:
            mine = own(tmp_path, nothing, QUICK)
        except UserError:
            outcomes.append("refused")
        else:
            outcomes.append("owns")
            owners.append(mine)

    owners: list[object] = []
    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["owns"] + ["refused"] * 15
    for mine in owners:
        mine.release()  # type: ignore[attr-defined]


def test_an_owner_on_another_host_lives_as_long_as_its_record_is_touched(tmp_path: Path) -> None:
    file, ended = elsewhere(tmp_path), threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(1.2)
    with pytest.raises(UserError, match=r"on node7"):
        own(tmp_path, nothing, QUICK)
    ended.set()
    thread.join()
    begun = time.monotonic()
    with owned(tmp_path, nothing, QUICK):
        assert 0.5 < time.monotonic() - begun < 5.0
        assert not file.exists()


def test_clocks_of_hosts_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = elsewhere(tmp_path)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1e6)
    beat = threading.Timer(0.5, os.utime, [file])
    beat.start()
    with pytest.raises(UserError, match=r"on node7"):
        own(tmp_path, nothing, QUICK)
    beat.join()


def test_a_process_number_that_was_used_again_is_not_the_owner(tmp_path: Path) -> None:
    (tmp_path / OWNER).mkdir()
    stranger = replace(Owner.this_process(), process=os.getppid(), started=1.0)
    (tmp_path / OWNER / "000001.json").write_text(json.dumps(asdict(stranger)))
    own(tmp_path, nothing, QUICK).release()


def test_a_frozen_owner_that_was_taken_over_learns_of_it_and_publishes_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        file = tmp_path / OWNER / "000001.json"
        owner = json.loads(file.read_text())
        file.write_text(json.dumps({**owner, "system": "another kernel"}))  # as if seen from another host
        with owned(tmp_path, nothing, QUICK):
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            assert process.stdout.readline() == f"lost to {os.getpid()}\n"
    lost: list[Owner | None] = []
    mine = own(tmp_path, lost.append, QUICK)
    other = tmp_path / OWNER / "000099.json"
    other.write_text(json.dumps(asdict(replace(Owner.this_process(), host="node7"))))
    with pytest.raises(RunFailed, match=r"taken over by process .* on node7"):
        mine.check()
    mine.release()
    assert json.loads(other.read_text())["released"] is False


def test_a_directory_that_was_made_for_nothing_goes(tmp_path: Path) -> None:
    with owned(tmp_path / "runs" / "one", nothing, QUICK):
        pass
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "runs" / "one", nothing, QUICK):
        (tmp_path / "runs" / "one" / "config.json").write_text("{}")
    assert (tmp_path / "runs" / "one" / "config.json").is_file()


def test_setting_the_clock_of_a_machine_kills_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the wall clock a process that began an hour before the clock was set is another one afterwards."""
    with holder(tmp_path):
        moved = psutil.Process.create_time
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: moved(self) + 3600)
        with pytest.raises(UserError, match="is at work there"):
            own(tmp_path, nothing, QUICK)


def test_a_record_from_the_future_is_waited_for_no_longer_than_any(tmp_path: Path) -> None:
    file = elsewhere(tmp_path)
    os.utime(file, (time.time() + 1e6, time.time() + 1e6))
    begun = time.monotonic()
    with owned(tmp_path, nothing, QUICK):
        assert 0.9 < time.monotonic() - begun < 10.0


@pytest.mark.parametrize(
    "text",
    ["", "[]", "\udc80", '{"host": 1}', '{"host": "a", "system": "b", "process": "c", "started": 1, "since": 2}'],
)
def test_a_damaged_record_names_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / OWNER).mkdir()
    (tmp_path / OWNER / "000003.json").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / OWNER / "000001.json").mkdir()
    with owned(tmp_path, nothing, QUICK) as mine:
        assert mine.file.name == "000004.json"


def test_an_owner_learns_that_its_directory_is_gone(tmp_path: Path) -> None:
    lost: list[Owner | None] = []
    run_dir = tmp_path / "run"
    with owned(run_dir, lost.append, QUICK) as mine:
        run_dir.rename(tmp_path / "elsewhere")
        with pytest.raises(RunFailed, match="run was moved or deleted while it was being worked on"):
            mine.check()
        until = time.monotonic() + 10
        while not lost and time.monotonic() < until:
            time.sleep(0.02)
        assert lost == [None]


def test_a_disk_without_room_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="No space left"), owned(tmp_path / "runs" / "one", nothing, QUICK):
        pass
    assert list(tmp_path.iterdir()) == []
