"""Reads a corpus into the shards of a TextSet, and sets some documents apart for validation."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from framework.data.layouts.columns import Columns
from framework.data.text.careful_reading import texts_beside
from framework.data.text.pieces import Piece, texts_of
from framework.data.text.shard_files import Document, Done, document_id, read_shard, shard_name, whole_file
from framework.errors import UserError

logger = logging.getLogger("framework.data")
MOST_BAD = 0.01  # share of a corpus' rows that may be no documents; more is another kind of file than was meant


@dataclass(frozen=True)
class ReadPieces:
    """Each shard: the documents of its pieces, in their order. Rows that are none are counted, the first one named."""

    directory: Path
    shards: tuple[tuple[Piece, ...], ...]
    columns: Columns
    key: str  # the setting that names the corpus
    seed: int
    apart: int  # documents that will be set apart: so many candidates are named of each shard
    alone: bool = False  # files are read in a process beside this one

    def careful(self) -> ReadPieces:
        """Survive rows that kill the process."""
        return replace(self, alone=True)

    def __call__(self, number: int) -> Done:
        """Write shard `number`; raises UserError for a file that can't be read."""
        name, pieces = shard_name("train", number), self.shards[number]
        row, wrong, rejected = 0, list[UserError](), Counter[str]()
        lowest: list[tuple[str, int]] = []
        with whole_file(self.directory / name) as writer:
            for piece in pieces:
                for text in self._texts(piece):
                    if isinstance(text, UserError):
                        wrong.append(text)
                        continue
                    if not text:
                        rejected["no_text"] += 1
                        continue
                    document = Document(document_id(piece.source, text), text, piece.source)
                    writer.write_document(document)
                    lowest.append((_drawn(self.seed, document.id), row))
                    row += 1
                    if len(lowest) > 2 * self.apart + 1000:
                        lowest = heapq.nsmallest(self.apart, lowest)
        if len(wrong) > max(100, row):
            raise wrong[0]
        first = tuple(heapq.nsmallest(self.apart, lowest))
        rejected += Counter(not_a_document=len(wrong))
        reasons = {f"dropped.{reason}": count for reason, count in rejected.items()}
        counts = {"train": row, **({"dropped": rejected.total()} if rejected else {}), **reasons}
        sources = tuple(map(str, pieces))
        return Done({name: writer.note()}, counts, {}, sources, first, _told(wrong[:1]))

    def _texts(self, piece: Piece) -> Iterator[str | UserError]:
        return (texts_beside if self.alone else texts_of)(piece, self.columns, self.key)


@dataclass(frozen=True)
class SetApart:
    """Each of the shards that hold documents for validation, parted: those documents, and the others."""

    directory: Path
    files: tuple[Path, ...]
    rows: tuple[tuple[int, ...], ...]  # of each file, those that are set apart

    def __call__(self, number: int) -> Done:
        """Write both parts of one file."""
        file, apart = self.files[number], set(self.rows[number])
        held = shard_name("validation", number)
        with whole_file(self.directory / held) as validation, whole_file(self.directory / file.name) as train:
            for row, document in enumerate(read_shard(file)):
                (validation if row in apart else train).write_document(document)
        return Done({file.name: train.note(), held: validation.note()})


def drawn(shards: Sequence[Done], wanted: int) -> list[tuple[int, int]]:
    """Return (shard, row) of the documents that are set apart, in their order: the first ones by a keyed hash.

    Neither the number of shards nor their order changes which they are.
    """
    named = ((key, number, row) for number, done in enumerate(shards) for key, row in done.first)
    return sorted((number, row) for _, number, row in heapq.nsmallest(wanted, named))


def check_rejected(shards: Sequence[Done]) -> None:
    """Raise UserError for the first row that is no document, if there are too many of them; else say how many."""
    names = ("train", "dropped.not_a_document")
    rows, rejected = (sum(done.counts.get(name, 0) for done in shards) for name in names)
    problem = next((done.problem for done in shards if done.problem), None)
    if problem is None:
        return
    error = UserError(*problem)
    if rejected > MOST_BAD * (rows + rejected):
        raise error
    logger.warning("%d of %d rows are no documents and were left out; the first: %s", rejected, rows + rejected, error)


def _told(wrong: Sequence[UserError]) -> tuple[str, str, str] | None:
    return (wrong[0].where, str(wrong[0].value), wrong[0].allowed) if wrong else None


def _drawn(seed: int, document: str) -> str:
    return hashlib.blake2b(f"{seed} {document}".encode(), digest_size=8).hexdigest()
