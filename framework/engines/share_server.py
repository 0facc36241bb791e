"""A learner rank's published share, for samplers on other machines: each asks for the slices that it loads.

Shards go to shards: of N ranks that hold parts of the model and M workers that load parts of it, every worker meets
every rank as a gloo group of two, and what it has asked for crosses the network once. Nobody waits for a third one, so
a deadline that passes names the one who is late, and a worker that comes later, or again, is served like the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, TCPStore

from framework.engines.memory_file import MemoryReader
from framework.types import MemoryFile, PublishedWeights

PART_BYTES = 32 * 2**20  # of a slice that is on its way at a time
IDLE_S = 600.0  # between two requests of a worker
_LOOK_EVERY_S = 0.02
_KEY, _FILE = "workers", "file"
WORDS = 64  # of a request, int64: bytes of an element, dimensions, where it begins in bytes, shape, strides


@dataclass(frozen=True)
class Slice:
    """A strided part of a file: `shape` and `stride` in elements of `width` bytes, beginning at byte `offset`."""

    offset: int
    width: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def encoded(self) -> torch.Tensor:
        """Int64 [WORDS]."""
        words = [self.width, len(self.shape), self.offset, *self.shape, *self.stride]
        return torch.tensor(words + [0] * (WORDS - len(words)), dtype=torch.int64)

    @classmethod
    def decoded(cls, words: torch.Tensor) -> Slice:
        """From `encoded`."""
        width, dims, offset, *rest = (int(word) for word in words)
        return cls(offset, width, tuple(rest[:dims]), tuple(rest[dims : 2 * dims]))

    @property
    def size(self) -> int:
        """Bytes to send."""
        return self.width * int(torch.Size(self.shape).numel())

    @property
    def span(self) -> int:
        """Bytes of the file from the first element to the last."""
        if not self.size:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.width * (last + 1)

    def parts(self) -> Iterator[slice]:
        """Rows of the first dimension that go together."""
        rows = self.shape[0] if self.shape else 1
        each = max(1, PART_BYTES // max(1, self.size // max(1, rows)))
        yield from (slice(at, min(rows, at + each)) for at in range(0, rows, each))


def group_of_two(store: Any, number: int, rank: int, limit_s: float) -> Any:
    """Meet the other side: the server is rank 0, a worker rank 1."""
    limit = timedelta(seconds=limit_s)
    return ProcessGroupGloo(PrefixStore(f"{number}/", store), rank, 2, limit)


class ShareServer:
    """Threads of a learner rank; they live as long as its process."""

    def __init__(self, host: str) -> None:
        self._store = TCPStore(host, 0, None, is_master=True, wait_for_workers=False)
        self._host, self._files = host, dict[str, MemoryFile]()
        self.sent = 0  # bytes, to everybody
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="weights", daemon=True).start()

    @property
    def address(self) -> str:
        """host:port, for workers."""
        return f"{self._host}:{self._store.port}"

    def offer(self, published: PublishedWeights) -> None:
        """Answer for a share, and no longer for those before the last one, but to whoever reads them already."""
        assert isinstance(published.buffer, MemoryFile)
        self._files = {**dict(list(self._files.items())[-1:]), published.buffer.name: published.buffer}

    def _accept(self) -> None:
        served = 0
        while True:
            waiting = self._store.add(_KEY, 0)
            for number in range(served + 1, waiting + 1):
                threading.Thread(target=self._serve, args=(number,), name="weights", daemon=True).start()
            served = waiting
            time.sleep(_LOOK_EVERY_S)

    def _serve(self, number: int) -> None:
        store = TCPStore(self._host, self._store.port, None, is_master=False)
        name = store.get(f"{number}/{_FILE}").decode()
        group = group_of_two(store, number, 0, IDLE_S)
        reader = MemoryReader(self._files[name])
        try:
            while (asked := self._asked(group)).width:
                self._send(group, reader, asked)
        finally:
            reader.close()

    def _asked(self, group: Any) -> Slice:
        words = torch.empty(WORDS, dtype=torch.int64)
        group.recv([words], 1, 0).wait()
        return Slice.decoded(words)

    def _send(self, group: Any, reader: MemoryReader, asked: Slice) -> None:
        """Send it part by part; copied only where its bytes do not lie together."""
        flat = reader.view(asked.offset, asked.span).view(_OF_WIDTH[asked.width])
        rows = torch.as_strided(flat, asked.shape or (1,), asked.stride or (1,))
        for part in asked.parts():
            group.send([rows[part].contiguous().reshape(-1).view(torch.uint8)], 1, 0).wait()
        with self._lock:
            self.sent += asked.size


class ShareClient:
    """A worker's end: one file of one learner rank. Its methods raise TimeoutError or ConnectionError that name it."""

    def __init__(self, file: MemoryFile, limit_s: float) -> None:
        """`limit_s`: for each part of a slice."""
        self._file, self._limit = file, timedelta(seconds=limit_s)
        self.received = 0  # bytes
        host, _, port = file.address.rpartition(":")
        with self._named("to meet it"):
            store = TCPStore(host, int(port), None, is_master=False, timeout=self._limit)
            number = store.add(_KEY, 1)
            store.set(f"{number}/{_FILE}", file.name)
            self._group = group_of_two(store, number, 1, limit_s)

    def read(self, asked: Slice, into: torch.Tensor) -> None:
        """Copy a slice into a tensor of its shape, of any device, dtype and stride; elements keep their value."""
        with self._named(f"for {asked.size} bytes"):
            self._group.send([asked.encoded()], 0, 0).wait(self._limit)
            target = into.view(into.shape or (1,))
            for part in asked.parts():
                rows = target[part]
                direct = rows.device.type == "cpu" and rows.is_contiguous()
                arriving = rows if direct else torch.empty(rows.shape, dtype=rows.dtype)
                self._group.recv([arriving.view(-1).view(torch.uint8)], 0, 0).wait(self._limit)
                if not direct:
                    rows.copy_(arriving)
        self.received += asked.size

    def close(self) -> None:
        """Say that nothing more will be asked."""
        with self._named("to take leave of it"):
            self._group.send([Slice(0, 0, (), ()).encoded()], 0, 0).wait(self._limit)

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of torch.distributed, whose kinds of error are told apart by their text alone
            file, text = self._file, str(error).partition("\n")[0]
            if "imed out" in text or "imeout" in text:
                limit = self._limit.total_seconds()
                raise TimeoutError(f"late is {file.owner} at {file.address}: waited {limit:g} s {what}") from error
            raise ConnectionError(f"{file.owner} at {file.address} is lost: {text}") from error


_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
