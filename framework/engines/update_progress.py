"""A sampler's weight update has a deadline at every step, and who of its tensor-parallel ranks is late has a name.

vLLM asks its worker processes together and hears of a timeout only that somebody has not answered. So each rank counts
what it has done in memory that all of them map.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from framework.engines.memory_file import machine, opened
from framework.engines.weights import update_limit
from framework.types import MemoryFile, PublishedWeights

_COUNTER = struct.Struct("=q")
_NAME = "weight-update"
_ABSENT = -1  # a count of nobody


class UpdateWatch:
    """One update of one engine, as the process that asks for it sees it. A context: the board is gone after it."""

    def __init__(self, ranks: int, shares: Sequence[PublishedWeights]) -> None:
        self._ranks, self._size = ranks, sum(share.size for share in shares)
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        os.pwrite(self._descriptor, _COUNTER.pack(_ABSENT) * ranks, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def board(self) -> MemoryFile:
        """What the ranks are given to count on."""
        return MemoryFile("sampler", machine(), os.getpid(), self._descriptor, _NAME, self._ranks * _COUNTER.size)

    def ask(self, engine: Any, method: str | Callable[..., None], kwargs: Mapping[str, Any]) -> None:
        """Have every rank of the engine do one step. Raises TimeoutError that names who has not done it in time."""
        name = method if isinstance(method, str) else method.__name__
        limit = update_limit(self._size)
        try:
            engine.collective_rpc(method, timeout=limit, kwargs=dict(kwargs))
        except TimeoutError as error:
            raise TimeoutError(f"{name} has taken {limit:.0f} s; {self._late()}") from error

    def _late(self) -> str:
        counts = [
            _COUNTER.unpack(os.pread(self._descriptor, _COUNTER.size, rank * _COUNTER.size))[0]
            for rank in range(self._ranks)
        ]
        least, most = min(counts), max(counts)
        if least == most:
            return f"late are all {self._ranks} tensor-parallel ranks: {_told(least)}"
        late = ", ".join(str(rank) for rank, count in enumerate(counts) if count == least)
        return f"late is tensor-parallel rank {late} of {self._ranks}: {_told(least)}, another {_told(most)}"


def _told(count: int) -> str:
    return f"has read {count} tensors" if count > _ABSENT else "has not begun, or is on another machine"


def arrive(worker: Any, board: MemoryFile) -> None:
    """On a rank: say that it takes part."""
    Progress(board, worker.rank).close()


class Progress:
    """A rank's own counter; without a board on this machine it tells nobody."""

    def __init__(self, board: MemoryFile | None, rank: int) -> None:
        self._descriptor, self._offset, self._count = -1, rank * _COUNTER.size, 0
        if board is not None and board.machine == machine():
            self._descriptor = opened(board, os.O_RDWR)
            self._tell()

    def step(self) -> None:
        """Count a tensor."""
        self._count += 1
        self._tell()

    def _tell(self) -> None:
        if self._descriptor >= 0:
            os.pwrite(self._descriptor, _COUNTER.pack(self._count), self._offset)

    def close(self) -> None:
        """Nothing more is counted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
