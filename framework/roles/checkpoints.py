"""A directory of checkpoints of which one counts: a crash at any moment leaves one to resume from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from framework.errors import UserError

LATEST = "LATEST"


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints `batch_NNNNNN` of a run, each of its trained batches; the file LATEST names the one that counts."""

    directory: Path

    def newest(self) -> Path | None:
        """The newest checkpoint, None before the first. Raises UserError if LATEST does not say which that is."""
        pointer = self.directory / LATEST
        name = pointer.read_text().strip() if pointer.is_file() else ""
        if name and (self.directory / name).is_dir():
            return self.directory / name
        # Whole, but not named yet: only the first, before any batch, can be so left by a crash.
        found = sorted(p.name for p in self._all() if p.suffix != ".tmp" and p.name != _name(0))
        if pointer.is_file() or found:
            names = f"one of {', '.join(found)}" if found else "a checkpoint beside it, and there is none"
            raise UserError(str(pointer), name, f"must name {names}; without it and them the stage starts anew")
        return None

    def save(self, batches: int, write: Callable[[Path], None]) -> None:
        """Have `write` fill a directory, and make it the one that counts after `batches`; what counts stays as it is.

        Older ones go once the new one is on the disk.
        """
        name = _name(batches)
        newest = self.newest()
        if newest is not None and newest.name == name:
            return
        target, temporary = self.directory / name, self.directory / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        temporary.replace(target)
        pointer = self.directory / f"{LATEST}.tmp"
        pointer.write_text(name)
        _sync(pointer)
        _sync(self.directory)
        pointer.replace(self.directory / LATEST)
        _sync(self.directory)
        for old in self._all():
            if old.name != name:
                shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return list(self.directory.glob("batch_*"))


def _name(batches: int) -> str:
    return f"batch_{batches:06d}"


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
