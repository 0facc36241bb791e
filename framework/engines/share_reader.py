"""The tensors of published shares as a sampler's worker reads them: mapped in place, or fetched slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from framework.engines.memory_file import machine
from framework.engines.remote_tensor import RemoteTensor
from framework.engines.share_server import ShareClient, Slice
from framework.engines.weights import bytes_of, dtype_of, unflatten, update_limit
from framework.errors import RunFailed
from framework.types import MemoryFile, PublishedWeights, WeightTensor


class ShareReader:
    """One update's shares. What it yields stays good until `close`: vLLM loads some tensors only at the very end."""

    def __init__(self, shares: Sequence[PublishedWeights]) -> None:
        self._shares = shares
        self._clients: list[ShareClient] = []

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor). Raises RunFailed for bytes gone or out of reach, TimeoutError for late ones."""
        for share in self._shares:
            file = share.buffer
            if not isinstance(file, MemoryFile) or file.machine == machine():
                yield from unflatten(share)
                continue
            if not file.address:
                raise RunFailed(f"{file.owner} is on another machine, and its weights are not served to others")
            client = ShareClient(file, update_limit(max(map(bytes_of, share.tensors), default=0)))
            self._clients.append(client)
            yield from ((entry.name, _remote(entry, client)) for entry in share.tensors)

    @property
    def received(self) -> int:
        """Bytes that have crossed the network."""
        return sum(client.received for client in self._clients)

    def close(self) -> None:
        """Nothing more is read."""
        for client in self._clients:
            client.close()
        self._clients = []


def _remote(entry: WeightTensor, client: ShareClient) -> RemoteTensor:
    def fetch(cut: torch.Tensor, into: torch.Tensor) -> None:
        width = cut.element_size()
        begin = entry.offset + int(cut.storage_offset()) * width
        client.read(Slice(begin, width, tuple(cut.shape), tuple(cut.stride())), into)

    return RemoteTensor(torch.empty(entry.shape, dtype=dtype_of(entry), device="meta"), fetch)
