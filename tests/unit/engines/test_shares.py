"""Slices of published shares over gloo: every byte once, whoever is late by name."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from framework.engines import share_reader
from framework.engines.share_reader import ShareReader
from framework.engines.share_server import PART_BYTES, ShareServer, Slice
from framework.engines.weights import write
from framework.errors import RunFailed
from framework.types import MemoryFile, PublishedWeights

RANKS, EXPERTS, HIDDEN = 2, 4, 6


def model() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    experts = {f"layers.0.experts.{e}.up.weight": torch.randn(8, HIDDEN) for e in range(EXPERTS)}
    return experts | {
        "norm.weight": torch.randn(HIDDEN),
        "router.weight": torch.randn(EXPERTS, HIDDEN).bfloat16(),
        "head.weight": torch.randn(10, HIDDEN),
    }


def share_of(rank: int) -> list[tuple[str, torch.Tensor]]:
    """As expert-parallel rank `rank` of two publishes it."""
    each = EXPERTS // RANKS
    own = {f"experts.{e}." for e in range(rank * each, (rank + 1) * each)}
    return [(n, t) for n, t in model().items() if any(part in n for part in own) or (rank == 0 and "experts" not in n)]


@contextmanager
def served() -> Iterator[tuple[list[PublishedWeights], list[ShareServer]]]:
    """The shares of two ranks, as on another machine."""
    servers, shares, owners = [ShareServer("127.0.0.1") for _ in range(RANKS)], [], []
    for rank, server in enumerate(servers):
        published, owner = write(share_of(rank), 1, f"learner rank {rank}", server.address)
        server.offer(published)
        shares.append(elsewhere(published))
        owners.append(owner)
    yield shares, servers
    for owner in owners:
        owner.close()


def elsewhere(published: PublishedWeights) -> PublishedWeights:
    assert isinstance(published.buffer, MemoryFile)
    return dataclasses.replace(published, buffer=dataclasses.replace(published.buffer, machine="another"))


def load(reader: ShareReader, worker: int, workers: int) -> dict[str, torch.Tensor]:
    """As tensor-parallel worker `worker` does: its half of the rows, or columns of experts; small ones whole."""
    found = {}
    for name, tensor in reader.tensors():
        if name != "norm.weight" and name != "router.weight":
            dim = int("experts" in name)
            size = tensor.shape[dim] // workers
            tensor = tensor.narrow(dim, worker * size, size)
        meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        meta.copy_(tensor)  # vLLM counts first: that fetches nothing
        found[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        found[name].copy_(tensor)
    return found


def test_two_ranks_and_two_workers_move_each_byte_once() -> None:
    whole = model()
    with served() as (shares, servers):
        loaded, received = [], []
        for worker in range(2):
            reader = ShareReader(shares)
            loaded.append(load(reader, worker, 2))
            received.append(reader.received)
            reader.close()
        time.sleep(0.2)
        for name, tensor in whole.items():
            parts = [found[name] for found in loaded]
            if name in ("norm.weight", "router.weight"):
                assert all(torch.equal(part, tensor) for part in parts)
            else:
                assert torch.equal(torch.cat(parts, int("experts" in name)), tensor)
        for found, bytes_ in zip(loaded, received, strict=True):
            assert bytes_ == sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        assert sum(server.sent for server in servers) == sum(received)
        of_experts = sum(t.numel() * t.element_size() for n, t in whole.items() if "experts" in n)
        assert servers[1].sent == of_experts / 2  # its own experts, and once


def test_a_loader_that_does_more_than_cut_gets_what_it_needs() -> None:
    with served() as (shares, _):
        reader = ShareReader(shares)
        found, whole = dict(reader.tensors()), model()
        tensor, name = whole["head.weight"], "head.weight"
        assert torch.equal(found[name].to(torch.float64), tensor.double())
        assert torch.equal(found[name][2:4] * 2, tensor[2:4] * 2)
        assert torch.equal(found[name].t().reshape(-1), tensor.t().reshape(-1))
        assert found["norm.weight"][0].item() == whole["norm.weight"][0].item()
        half = torch.empty(HIDDEN, 10, dtype=torch.bfloat16).t()  # another dtype, and other strides
        half.copy_(found[name])
        assert torch.equal(half, tensor.bfloat16())
        reader.close()


def test_slices_longer_than_a_part_come_in_parts() -> None:
    long = Slice(0, 4, (5, PART_BYTES // 8), (PART_BYTES // 8, 1))
    assert [(part.start, part.stop) for part in long.parts()] == [(0, 2), (2, 4), (4, 5)]
    assert [(part.start, part.stop) for part in Slice(0, 4, (), ()).parts()] == [(0, 1)]
    assert list(Slice(0, 4, (0, 3), (3, 1)).parts()) == []


RANK = """
import sys, time, torch
from framework.engines.share_server import ShareServer
from framework.engines.weights import write
server = ShareServer("127.0.0.1")
published, owner = write([("w", torch.ones(4))], 1, "learner rank 1", server.address)
server.offer(published)
file = published.buffer
print(file.process, file.descriptor, file.name, file.address, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("sent", "error", "said"), [
    (signal.SIGSTOP, TimeoutError, r"late is learner rank 1 at 127\.0\.0\.1:\d+: waited 2 s for 16 bytes"),
    (signal.SIGKILL, ConnectionError, r"learner rank 1 at 127\.0\.0\.1:\d+ is lost"),
])  # fmt: skip
def test_a_rank_that_stops_or_dies_is_named(
    sent: signal.Signals, error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_reader, "update_limit", lambda size: 2.0)
    child = subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        process, descriptor, name, address = child.stdout.readline().split()
        file = MemoryFile("learner rank 1", "another", int(process), int(descriptor), name, 16, address)
        published = dataclasses.replace(write([("w", torch.ones(4))], 1, "")[0], buffer=file)
        ((_, tensor),) = ShareReader([published]).tensors()
        child.send_signal(sent)
        with pytest.raises(error, match=said):
            torch.empty(4).copy_(tensor)
    finally:
        child.kill()


def test_another_machine_needs_somebody_who_serves() -> None:
    published, owner = write([("w", torch.ones(4))], 1, "learner rank 0")
    with pytest.raises(RunFailed, match="learner rank 0 is on another machine"):
        list(ShareReader([elsewhere(published)]).tensors())
    owner.close()
