"""The files of a TextSet: numbered shards of documents, a JSON object a line; each is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from framework.artifacts import SHARDS, FileNote, read_json
from framework.errors import UserError
from framework.files import write_atomically

MOST_FAILED = 0.01  # share of documents that may be lost because a rule fails on them, or a process


@dataclass(frozen=True)
class Document:
    """One text of a TextSet."""

    id: str
    text: str
    source: str = ""  # which of the sources that were named it is from


@dataclass(frozen=True)
class Done:
    """What a step made of a shard. Its record is written last: where it is, the shard is whole."""

    files: Mapping[str, FileNote] = field(default_factory=dict)  # of the step's directory
    counts: Mapping[str, int] = field(default_factory=dict)
    shown: Mapping[str, int] = field(default_factory=dict)  # counts for pictures, e.g. "language en"
    sources: tuple[str, ...] = ()  # files, or places in files, that it was made of
    first: tuple[tuple[str, int], ...] = ()  # (keyed hash, row) of the shard's first documents in random order
    problem: tuple[str, str, str] | None = None  # where, what and what is allowed: the first row that was left out


def document_id(source: str, text: str) -> str:
    """Return the id of a text: a hash of it and its source, so it is the same however a corpus is cut into files."""
    return hashlib.blake2b(f"{source}\0{text}".encode(), digest_size=16).hexdigest()


def shard_name(kind: str, number: int, suffix: str = "jsonl") -> str:
    """Return the name of a shard, e.g. train-00012.jsonl."""
    return f"{kind}-{number:05d}.{suffix}"


def text_files(directory: Path, split: str) -> list[Path]:
    """Return the shards of a split in their order; raises UserError if there is none."""
    found = sorted(directory.glob(f"{split}-*.jsonl"), key=lambda file: int(file.stem.rpartition("-")[2]))
    if not found:
        raise UserError(str(directory / shard_name(split, 0)), "no such file", "a set of text has shards of each split")
    return found


def read_shard(file: Path) -> Iterator[Document]:
    """Yield the documents of a shard; raises UserError for a line that this module has not written."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield Document(**json.loads(line))
                except (ValueError, TypeError) as error:
                    allowed = "must be a document as the framework writes it: damaged"
                    raise UserError(f"{file}:{number}", str(error), allowed) from None
    except OSError as error:
        raise UserError(str(file), error.strerror, "must be a file that can be read") from None


def read_text(directory: Path, split: str) -> Iterator[Document]:
    """Yield the documents of all shards of a split, in their order."""
    for file in text_files(directory, split):
        yield from read_shard(file)


def train_sizes(directory: Path) -> list[int]:
    """Return how many documents each train shard has, in their order."""
    listed = read_json(directory / SHARDS)["shards"]
    sizes = {name: shard["counts"]["train"] for shard in listed for name in shard["files"] if name.startswith("train-")}
    return [sizes[file.name] for file in text_files(directory, "train")]


class ShardWriter:
    """Writes one file and counts and digests what it writes."""

    def __init__(self, file: BinaryIO, directory: Path) -> None:
        self.directory = directory
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        """Append `content`."""
        self._file.write(content)
        self._hash.update(content)
        self._size += len(content)

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Append a JSON object as a line."""
        self.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def write_document(self, document: Document) -> None:
        """Append a document."""
        row = asdict(document)
        self.write_row(row if document.source else {"id": document.id, "text": document.text})

    def note(self) -> FileNote:
        """Bytes and SHA-256 of what was written."""
        return FileNote(self._size, self._hash.hexdigest())


@contextmanager
def whole_file(file: Path) -> Iterator[ShardWriter]:
    """Write a file that is there once the block has ended, whole; if the block raises, what stood there stays."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            yield ShardWriter(handle, file.parent)
        temporary.replace(file)
    except OSError as error:  # a full disk does not say which file it was
        error.filename = error.filename or str(file)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(directory: Path, splits: Mapping[str, Iterable[Document]]) -> dict[str, int]:
    """Write documents that are at hand as one shard a split; returns how many each has."""
    done = {}
    for split, documents in splits.items():
        name, count = shard_name(split, 0), 0
        with whole_file(directory / name) as writer:
            for document in documents:
                writer.write_document(document)
                count += 1
        done[name] = Done({name: writer.note()}, {split: count})
    write_listing(directory, done.values())
    return {split: done[shard_name(split, 0)].counts[split] for split in splits}


def write_listing(directory: Path, shards: Iterable[Done]) -> dict[str, int]:
    """Write what is known of the shards of a finished set; returns their counts together."""
    listed, counts, shown = [], Counter[str](), Counter[str]()
    for done in shards:
        counts.update(done.counts)
        shown.update(done.shown)
        notes = {name: asdict(note) for name, note in done.files.items()}
        listed.append({"files": notes, "counts": dict(done.counts), "sources": list(done.sources)})
    found = {"counts": dict(counts), "shown": dict(shown), "shards": listed}
    write_atomically(directory / SHARDS, json.dumps(found, indent=1))
    return dict(counts)
