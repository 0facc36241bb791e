"""A directory of checkpoints of which one counts: a crash leaves one to resume from, and damage an older one.

The one that did best on held-out prompts stays too, however old it gets.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from framework.errors import DamagedState, UserError
from framework.files import clear_way, remove_tree

LATEST, BEST = "LATEST", "BEST"
EVALUATION = "evaluation.json"  # in a checkpoint: what it scored on held-out prompts
KEPT = 2  # the one that counts, and one to fall back to
logger = logging.getLogger("framework")


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints `batch_NNNNNN` of a run, each of its trained batches; the file LATEST names the one that counts.

    BEST names the one of the highest score, where checkpoints are evaluated.
    """

    directory: Path

    def newest(self) -> Path | None:
        """The checkpoint that counts, None before the first.

        Where LATEST is lost or damaged that is the newest: each is whole, or it would not have its name.
        """
        pointer, named = self.directory / LATEST, self._named(LATEST)
        if named is not None:
            return named
        # Whole, but not named yet: only the first, before any batch, can be so left by a crash.
        found = [path for path in self._whole() if pointer.is_file() or path.name != _name(0)]
        if found:
            logger.warning("%s names no checkpoint that is there: taking %s", pointer, found[-1].name)
        elif pointer.is_file():
            allowed = "must name a checkpoint beside it, and there is none; without it the stage starts anew"
            raise UserError(str(pointer), pointer.read_text(errors="replace"), allowed)
        return found[-1] if found else None

    def restore(self, load: Callable[[Path], None]) -> bool:
        """Have `load` restore the checkpoint that counts, or where it raises DamagedState the one before it.

        Returns False if there is none yet. What was damaged keeps its files under another name until the next save.
        Raises UserError if no checkpoint is left.
        """
        damaged: list[Path] = []
        while (checkpoint := self._next(damaged)) is not None:
            try:
                load(checkpoint)
            except DamagedState as error:
                damaged.append(checkpoint)
                older = self._next(damaged)
                if older is None:
                    allowed = f"{error.allowed}; no older checkpoint is left: without {self.directory} the stage "
                    raise UserError(error.where, error.value, f"{allowed}starts anew") from None
                logger.warning("checkpoint %s is damaged (%s): going on from %s", checkpoint.name, error, older.name)
                continue
            if checkpoint != self._named(LATEST):
                self._point_at(checkpoint.name, LATEST)
            for path in damaged:
                other = path.with_name(f"{path.name}.damaged")
                clear_way(other)
                path.rename(other)
            return True
        return False

    def best(self) -> Path | None:
        """The checkpoint of the highest score; None if none has been evaluated, or it is gone."""
        found = self._named(BEST)
        return found if found is not None and _score(found) is not None else None

    def evaluated(self, batches: int) -> bool:
        """Whether the checkpoint after `batches` has been evaluated."""
        return _score(self.directory / _name(batches)) is not None

    def evaluate(self, batches: int, score: float, more: Mapping[str, float]) -> bool:
        """Note what the checkpoint after `batches` scored, in all that is known of it; return whether it is the best.

        Of equally good ones the earlier stays the best. A score that is not a number is the lowest.
        """
        checkpoint = self.directory / _name(batches)
        score = -math.inf if math.isnan(score) else score
        record, unfinished = checkpoint / EVALUATION, checkpoint / f"{EVALUATION}.tmp"
        unfinished.write_text(json.dumps({"score": score, **more}, indent=1))
        _sync(unfinished)
        unfinished.replace(record)
        _sync(checkpoint)
        best = self.best()
        before = None if best is None or best == checkpoint else _score(best)
        if before is not None and score <= before:
            return False
        self._point_at(checkpoint.name, BEST)
        return True

    def _named(self, which: str) -> Path | None:
        pointer = self.directory / which
        name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
        found = self.directory / name
        return found if re.fullmatch(r"batch_\d{6,}", name) and found.is_dir() else None

    def _next(self, damaged: list[Path]) -> Path | None:
        """The newest that is not damaged, at or before the one that counts."""
        newest = self.newest()
        if newest is None or newest not in damaged:
            return newest
        older = [path for path in self._whole() if _number(path) < _number(newest) and path not in damaged]
        return older[-1] if older else None

    def save(self, batches: int, write: Callable[[Path], None]) -> None:
        """Have `write` fill a directory, and make it the one that counts after `batches`; what counts stays as it is.

        The one before it stays too, and the best one; others go once the new one is on the disk.
        """
        name = _name(batches)
        newest = self.newest()
        if newest is not None and newest.name == name:
            return
        target, temporary = self.directory / name, self.directory / f"{name}.tmp"
        clear_way(temporary)
        clear_way(target)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        temporary.replace(target)
        self._point_at(name, LATEST)
        kept = {path.name for path in [p for p in self._whole() if _number(p) < batches][1 - KEPT :]} | {name}
        kept |= {best.name} if (best := self._named(BEST)) is not None else set()
        for old in self.directory.glob("*batch_*"):
            newer = old in self._whole() and _number(old) > batches  # nobody's, but whole
            if old.name not in kept and not newer:
                remove_tree(old)

    def _point_at(self, name: str, which: str) -> None:
        pointer = self.directory / f"{which}.tmp"
        pointer.write_text(name)
        _sync(pointer)
        _sync(self.directory)
        pointer.replace(self.directory / which)
        _sync(self.directory)

    def _whole(self) -> list[Path]:
        """Checkpoints that a save has finished, oldest first."""
        return sorted((p for p in self.directory.glob("batch_*") if p.name[6:].isdigit()), key=_number)


def _score(checkpoint: Path) -> float | None:
    """What a checkpoint scored; None if it was not evaluated, or the note of it is damaged."""
    try:
        return float(json.loads((checkpoint / EVALUATION).read_text())["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name[6:])


def _name(batches: int) -> str:
    return f"batch_{batches:06d}"


def _sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
