"""Checkpoints survive a death between any two file operations, and nothing is deleted on a guess."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.roles.checkpoints import LATEST, Checkpoints

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
        assert [path.name for path in directory.glob("batch_*")] == [f"batch_{new + 1:06d}"]
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


@pytest.mark.parametrize("content", ["", "batch_000099", None])
def test_checkpoints_that_latest_does_not_name_are_refused_and_kept(tmp_path: Path, content: str | None) -> None:
    saved(tmp_path, 4)
    (tmp_path / LATEST).unlink()
    if content is not None:
        (tmp_path / LATEST).write_text(content)
    with pytest.raises(UserError, match=r"LATEST.*must name one of batch_000004"):
        saved(tmp_path, 0)
    assert (tmp_path / "batch_000004" / "ledger").read_text() == "4"
