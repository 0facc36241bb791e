"""The environment of actors' processes: threads and the allocator, without which roles fight over a CPU's cores."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from framework.engines.device import device_environment


def worker_environment(cpus: float, on_gpu: bool) -> dict[str, str]:
    """Thread counts and the allocator for an actor: without them every library takes all cores and they fight."""
    told = {"TOKENIZERS_PARALLELISM": "false", **device_environment(on_gpu)}
    if on_gpu:
        return told
    return {
        **told,
        "OMP_NUM_THREADS": str(max(1, int(cpus))),
        # Idle OpenMP threads must sleep, not spin: another role needs the core.
        "OMP_WAIT_POLICY": "PASSIVE",
        **_allocator(),
    }


def actor_options(cpus: float, gpus: float, threads: int = 0) -> dict[str, Any]:
    """Ray's options for an actor on its own: what it books, and its environment, with `threads` if they are given."""
    environment = worker_environment(threads or cpus, gpus > 0)
    return {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}


def _allocator() -> dict[str, str]:
    """Ray's copy of jemalloc, told to keep what is freed for a while, or where there is none glibc with huge pages.

    glibc gives every activation back and takes it anew at each step: a tenth of a step on a CPU is page faults.
    Pages kept for ever would pile up instead: rows of ever new lengths seldom fit into what others left.
    """
    ray = find_spec("ray")
    jemalloc = Path(ray.origin if ray and ray.origin else "").parent / "core" / "libjemalloc.so"
    if not jemalloc.is_file():
        return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    preloaded = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if path and path != str(jemalloc)]
    return {
        "LD_PRELOAD": ":".join([*preloaded, str(jemalloc)]),
        "MALLOC_CONF": "dirty_decay_ms:20000,muzzy_decay_ms:0,thp:always,metadata_thp:auto",
    }
