"""Records dealt to partitions through files: each shard writes one, in the order of their partitions."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.artifacts import FileNote
from framework.data.text.shard_files import ShardWriter

_BUFFER = 2**16  # records that are held at once; more wait in a file


class Dealer:
    """Writes a shard's records, each to the partition of its key; of those beyond a few thousand it holds 12 bytes."""

    def __init__(self, writer: ShardWriter, partitions: int, dtype: np.dtype[Any]) -> None:
        self._writer, self._partitions, self._dtype = writer, partitions, dtype
        self._waiting: list[npt.NDArray[Any]] = []
        self._size = 0
        self._spilled: Any = None

    def add(self, records: npt.NDArray[Any]) -> None:
        """Take records with a field `key` of 64 mixed bits."""
        self._waiting.append(records)
        self._size += len(records)
        if self._size >= _BUFFER:
            if self._spilled is None:
                self._spilled = tempfile.TemporaryFile(dir=self._writer.directory)  # noqa: SIM115
            for waiting in self._waiting:
                self._spilled.write(waiting.tobytes())
            self._waiting, self._size = [], 0

    def finish(self) -> npt.NDArray[np.int64]:
        """Write everything; returns where each partition begins, and the end [partitions + 1]."""
        if self._spilled is None:
            records = np.concatenate([np.empty(0, self._dtype), *self._waiting])
        else:
            for waiting in self._waiting:
                self._spilled.write(waiting.tobytes())
            self._spilled.flush()
            records = np.memmap(self._spilled, self._dtype, "r")
        owner = np.concatenate([self._owner(block) for block in _blocks(records)] or [np.empty(0, np.uint32)])
        order = np.argsort(owner, kind="stable")
        for places in _blocks(order):
            self._writer.write(records[places].tobytes())
        if self._spilled is not None:
            self._spilled.close()
        counts = np.bincount(owner, minlength=self._partitions)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def _owner(self, records: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
        found: npt.NDArray[np.uint32] = (records["key"] % np.uint64(self._partitions)).astype(np.uint32)
        return found


def _blocks(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [array[start : start + _BUFFER] for start in range(0, len(array), _BUFFER)]


def dealt(file: Path, ends: Path, dtype: np.dtype[Any], partition: int) -> npt.NDArray[Any]:
    """Return one partition's records of a shard's file; `ends` holds what `Dealer.finish` returned."""
    first, end = np.fromfile(ends, np.int64, 2, offset=8 * partition)
    return np.fromfile(file, dtype, int(end - first), offset=int(first) * dtype.itemsize)


def save(writer: ShardWriter, records: npt.NDArray[Any]) -> FileNote:
    """Write records as they lie in memory."""
    writer.write(records.tobytes())
    return writer.note()


def of_shard(file: Path, dtype: np.dtype[Any], shard: int) -> npt.NDArray[Any]:
    """Return the records of one shard from a file that is sorted by shard."""
    if not file.stat().st_size:
        return np.empty(0, dtype)
    records = np.memmap(file, dtype, "r")
    first, end = np.searchsorted(records["shard"], [shard, shard + 1])
    return np.array(records[first:end])
