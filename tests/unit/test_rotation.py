"""Checkpoints survive a death between any two file operations, and nothing is deleted on a guess."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.errors import DamagedState, UserError
from framework.rotation import BEST, LATEST, Checkpoints

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def saved(directory: Path, batches: int) -> None:
    def write(target: Path) -> None:
        (target / "learner").mkdir()
        (target / "learner" / "state").write_text(str(batches))
        (target / "ledger").write_text(str(batches))

    Checkpoints(directory).save(batches, write)


def killed_at(operation: int, directory: Path, batches: int) -> bool:
    """Save in a child process that ends before its n-th file operation; whether it did."""
    child = os.fork()
    if child == 0:
        left = operation

        def count(event: str, _arguments: object) -> None:
            nonlocal left
            left -= event in OPERATIONS
            if left < 0:
                os._exit(9)

        sys.addaudithook(count)
        saved(directory, batches)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("before", [None, 0, 2])
def test_a_death_between_any_two_operations_leaves_the_old_or_the_new_one(tmp_path: Path, before: int | None) -> None:
    new = 0 if before is None else before + 2
    for operation in range(1000):
        directory = tmp_path / str(operation)
        if before is not None:
            saved(directory, before)
        if not killed_at(operation, directory, new):
            break
        found = Checkpoints(directory).newest()
        if found is None:
            assert before is None
        else:
            batches = int(found.name.removeprefix("batch_"))
            assert batches in (before, new)
            assert (found / "learner" / "state").read_text() == (found / "ledger").read_text() == str(batches)
        saved(directory, new)
        saved(directory, new + 1)
        assert sorted(path.name for path in directory.glob("*batch_*")) == [f"batch_{n:06d}" for n in (new, new + 1)]
    assert operation > 10


def test_everything_is_on_the_disk_before_the_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 2)
    synced: set[int] = set()
    fsync = os.fsync

    def record(descriptor: int) -> None:
        if (tmp_path / "batch_000002" / "ledger").exists():
            synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    saved(tmp_path, 4)
    files = [*(tmp_path / "batch_000004").rglob("*"), tmp_path / "batch_000004", tmp_path / LATEST, tmp_path]
    assert {file.stat().st_ino for file in files} <= synced


@pytest.mark.parametrize("content", ["", "batch_000099", "..", "b\x00tch_000004", None])
def test_where_latest_is_lost_the_newest_counts_and_nothing_is_deleted(tmp_path: Path, content: str | None) -> None:
    saved(tmp_path, 2)
    saved(tmp_path, 4)
    (tmp_path / LATEST).unlink()
    if content is not None:
        (tmp_path / LATEST).write_text(content)
    assert Checkpoints(tmp_path).newest() == tmp_path / "batch_000004"
    loaded: list[str] = []
    assert Checkpoints(tmp_path).restore(lambda path: loaded.append(path.name))
    assert loaded == ["batch_000004"]
    assert (tmp_path / LATEST).read_text() == "batch_000004"
    saved(tmp_path, 1)
    assert (tmp_path / "batch_000004" / "ledger").read_text() == "4"


def test_latest_alone_is_no_beginning(tmp_path: Path) -> None:
    (tmp_path / LATEST).write_text("batch_000004")
    with pytest.raises(UserError, match=r"LATEST: got 'batch_000004'; must name a checkpoint beside it"):
        Checkpoints(tmp_path).newest()


def refuse(*damaged: str) -> tuple[list[str], Callable[[Path], None]]:
    """What was loaded, and a load that finds these checkpoints damaged."""
    loaded: list[str] = []

    def load(path: Path) -> None:
        if path.name in damaged:
            raise DamagedState(str(path / "ledger"), "digest 1", "was saved with 2")
        loaded.append(path.name)

    return loaded, load


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    for batches in (2, 4, 6):
        saved(tmp_path, batches)
    assert sorted(path.name for path in tmp_path.glob("batch_*")) == ["batch_000004", "batch_000006"]
    loaded, load = refuse("batch_000006")
    assert Checkpoints(tmp_path).restore(load)
    assert loaded == ["batch_000004"]
    assert "checkpoint batch_000006 is damaged" in caplog.text
    assert "/batch_000006/ledger" in caplog.text
    assert "going on from batch_000004" in caplog.text
    assert Checkpoints(tmp_path).newest() == tmp_path / "batch_000004"
    assert (tmp_path / "batch_000006.damaged" / "ledger").is_file()
    saved(tmp_path, 6)  # trained anew
    assert sorted(path.name for path in tmp_path.glob("batch_*")) == ["batch_000004", "batch_000006"]


def test_without_a_whole_one_the_file_and_the_way_out_are_named(tmp_path: Path) -> None:
    for batches in (2, 4):
        saved(tmp_path, batches)
    with pytest.raises(UserError, match=r"batch_000002/ledger: .*no older checkpoint is left: without .* starts anew"):
        Checkpoints(tmp_path).restore(refuse("batch_000002", "batch_000004")[1])
    assert len(list(tmp_path.glob("batch_*"))) == 2
    assert not Checkpoints(tmp_path / "none").restore(refuse()[1])


@pytest.mark.parametrize("number", [errno.ENOTEMPTY, errno.EIO, errno.ESTALE])
def test_what_a_disk_refuses_to_remove_is_said_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    rmtree = shutil.rmtree

    def refuse(path: Path) -> None:
        if path.name in ("batch_000002", "batch_000003", "batch_000007.tmp"):
            raise OSError(number, os.strerror(number), str(path))
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    (tmp_path / "batch_000007.tmp").mkdir()
    for batches in range(1, 8):
        saved(tmp_path, batches)
    assert caplog.text.count("can't be removed") == 1
    assert Checkpoints(tmp_path).newest() == tmp_path / "batch_000007"
    assert (tmp_path / "batch_000007" / "ledger").read_text() == "7"


def test_a_death_while_a_score_is_noted_leaves_the_best_before_or_the_new_one(tmp_path: Path) -> None:
    for operation in range(100):
        directory = tmp_path / str(operation)
        saved(directory, 1)
        Checkpoints(directory).evaluate(1, 0.5, {})
        saved(directory, 2)
        child = os.fork()
        if child == 0:
            left = operation

            def count(event: str, _arguments: object) -> None:
                nonlocal left
                left -= event in OPERATIONS
                if left < 0:
                    os._exit(9)

            sys.addaudithook(count)
            Checkpoints(directory).evaluate(2, 0.75, {})
            os._exit(0)
        finished = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        best = Checkpoints(directory).best()
        assert best is not None
        assert best.name == "batch_000002" if finished else best.name in ("batch_000001", "batch_000002")
        if not Checkpoints(directory).evaluated(2):  # asked again on resuming
            Checkpoints(directory).evaluate(2, 0.75, {})
            assert (directory / BEST).read_text() == "batch_000002"
        if finished:
            break
    assert operation > 3


def test_the_best_is_kept_however_old_and_goes_when_a_better_one_comes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best() is None
    for batches, score in ((1, 0.1), (2, 0.9), (3, 0.5), (4, 0.4), (5, 0.3)):
        saved(tmp_path, batches)
        assert checkpoints.evaluate(batches, score, {"step": batches}) == (batches < 3)
    assert sorted(path.name for path in tmp_path.glob("batch_*")) == [f"batch_{n:06d}" for n in (2, 4, 5)]
    saved(tmp_path, 6)
    assert checkpoints.evaluate(6, 0.95, {})
    saved(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.glob("batch_*")) == ["batch_000006", "batch_000007"]
    shutil.rmtree(tmp_path / "batch_000006")  # by hand
    assert checkpoints.best() is None
    assert checkpoints.evaluate(7, 0.1, {})
