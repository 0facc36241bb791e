"""Runs a function on several ranks, each a process of its own, joined by gloo or NCCL, as learner actors are."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

TIMEOUT_S = 240.0
CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
ENGINES = [
    "deepspeed", "framework.engines.trainer", "framework.engines.published_policy",
    "transformers.models.deepseek_v3.modeling_deepseek_v3",
]  # fmt: skip


def run_ranks(
    function: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = TIMEOUT_S,
    gpu: bool = False,
    devices: str = "",
) -> list[Any]:
    """Return function(*args) of each rank; `function` must be importable. Raises AssertionError with the traceback.

    `gpu`: rank i sees CUDA device i alone, by default, and they are joined by NCCL.
    """
    # The server imports the engines once for all ranks and all tests, and an import decides for a device.
    context: Any = multiprocessing.get_context("spawn" if gpu else "forkserver")
    if not gpu:
        context.set_forkserver_preload(ENGINES)
    results: Any = context.Queue()
    port = free_port()
    ranks = [context.Process(target=_rank, args=(function, r, world, port, results, args)) for r in range(world)]
    for rank, process in enumerate(ranks):
        found = {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": devices or str(rank)} if gpu else CPU
        with mock.patch.dict(os.environ, found):  # looked up on import
            process.start()
    outputs: dict[int, Any] = {}
    try:
        while len(outputs) < world:
            rank, output, error = results.get(timeout=timeout_s)
            assert error is None, f"rank {rank}: {error}"
            outputs[rank] = output
    except queue.Empty:
        raise AssertionError(f"ranks {sorted(set(range(world)) - set(outputs))} gave no result") from None
    finally:
        for process in ranks:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
    return [outputs[r] for r in range(world)]


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(function: Callable[..., Any], rank: int, world: int, port: int, results: Any, args: tuple[Any, ...]) -> None:
    on_gpu = os.environ.get("DS_ACCELERATOR") == "cuda"
    local = 0 if on_gpu else rank  # a rank on a GPU sees one
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), **({} if on_gpu else CPU))  # fmt: skip
    try:
        results.put((rank, function(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
