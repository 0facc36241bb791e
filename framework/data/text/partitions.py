"""Records dealt to partitions through files: a file a shard, in it runs of records in the order of their partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.artifacts import FileNote
from framework.data.text.shard_files import ShardWriter

_BUFFER = 2**14  # records that are sorted at once


class Dealer:
    """Writes a shard's records, each to the partition of its key; memory holds a run of them at most."""

    def __init__(self, writer: ShardWriter, partitions: int) -> None:
        self._writer, self._partitions = writer, partitions
        self._waiting: list[npt.NDArray[Any]] = []
        self._size = 0
        self._ends: list[npt.NDArray[np.int64]] = []

    def add(self, records: npt.NDArray[Any]) -> None:
        """Take records with a field `key` of 64 mixed bits."""
        self._waiting.append(records)
        self._size += len(records)
        if self._size >= _BUFFER:
            self._flush()

    def finish(self) -> npt.NDArray[np.int64]:
        """Write the rest; returns where each partition's records end in each run [runs, partitions]."""
        if self._waiting:
            self._flush()
        return np.array(self._ends, np.int64).reshape(-1, self._partitions)

    def _flush(self) -> None:
        records = np.concatenate(self._waiting)
        owner = records["key"] % np.uint64(self._partitions)
        counts = np.bincount(owner.astype(np.int64), minlength=self._partitions)
        self._writer.write(records[np.argsort(owner, kind="stable")].tobytes())
        begins = self._ends[-1][-1] if self._ends else 0
        self._ends.append(begins + np.cumsum(counts))
        self._waiting, self._size = [], 0


def dealt(file: Path, ends: npt.NDArray[np.int64], dtype: np.dtype[Any], partition: int) -> npt.NDArray[Any]:
    """Return one partition's records of a shard's file."""
    if not ends.size:
        return np.empty(0, dtype)
    records = np.memmap(file, dtype, "r")
    flat = np.concatenate([[0], ends.ravel()])
    places = np.arange(len(ends)) * ends.shape[1] + partition
    return np.concatenate([records[flat[place] : flat[place + 1]] for place in places])


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
