"""A weight update that does not end names the tensor-parallel rank that is late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from framework.engines import update_progress
from framework.engines.update_progress import Progress, UpdateWatch, arrive
from framework.engines.weights import LEAST_LIMIT_S, SLOWEST_BYTES_S, update_limit, write


class Engine:
    """Two ranks that read some tensors, one of them fewer, before vLLM's patience ends."""

    def __init__(self, read: tuple[int, int]) -> None:
        self.read, self.timeout = read, 0.0

    def collective_rpc(self, method: str, timeout: float, kwargs: Any) -> None:
        self.timeout = timeout
        for rank, count in enumerate(self.read):
            if count < 0:
                continue
            if not count:
                arrive(SimpleNamespace(rank=rank), kwargs["board"])
                continue
            progress = Progress(kwargs["board"], rank)
            for _ in range(count):
                progress.step()
            progress.close()
        raise TimeoutError("RPC call to update_weights timed out.")


@pytest.mark.parametrize(("read", "said"), [
    ((5, 2), "rank 1 of 2: has read 2 tensors, another has read 5"),
    ((0, 3), "rank 0 of 2: has read 0 tensors, another has read 3"),
    ((4, 4), "all 2 tensor-parallel ranks: has read 4 tensors"),
    ((-1, 0), "rank 0 of 2: has not begun, or is on another machine, another has read 0"),
])  # fmt: skip
def test_the_rank_that_has_read_least_is_late(read: tuple[int, int], said: str) -> None:
    share, owner = write([("w", torch.ones(4))], 1, "rank")
    engine = Engine(read)
    with UpdateWatch(2, [share]) as watch, pytest.raises(TimeoutError, match=said):
        watch.ask(engine, "update_weights", {"board": watch.board})
    assert engine.timeout == update_limit(16)
    owner.close()


def test_limits_grow_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert update_limit(0) == LEAST_LIMIT_S
    assert update_limit(int(100 * SLOWEST_BYTES_S)) == LEAST_LIMIT_S + 100
    monkeypatch.setattr(update_progress, "update_limit", lambda size: 1.0)
    Progress(None, 0).step()  # nobody to tell
