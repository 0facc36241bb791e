"""Starts Ray for a run: a local instance, or the cluster at `cluster.ray_address` or RAY_ADDRESS."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from framework.errors import UserError
from framework.graph.cluster import ClusterConfig

CONNECT_TIMEOUT_S = 5.0


def ray_address(cluster: ClusterConfig) -> str:
    """Return the address to join, or an empty string for a local instance."""
    return cluster.ray_address or os.environ.get("RAY_ADDRESS", "")


def start_ray(cluster: ClusterConfig) -> None:
    """Join or start Ray; raises UserError if the cluster can't be reached or lacks the GPUs that `cluster` counts on.

    A local instance offers as many CPUs as the roles ask for, even on fewer cores: Ray's CPUs only book places, and too
    few of them would leave an actor waiting for ever.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would start its workers 15 nice levels below this process: on a busy machine their start takes minutes.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    address = ray_address(cluster)
    if address:
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            where = "cluster.ray_address" if cluster.ray_address else "RAY_ADDRESS"
            raise UserError(where, address, f"must be the address of a Ray cluster that runs ({error})") from error
    else:
        ray.init(
            address="local",
            num_cpus=max(cluster.cpus, cpus_booked(cluster)),
            num_gpus=cluster.gpus_per_node,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,  # its greetings and hints are in its own logs
            object_store_memory=int(cluster.object_store_gib * 2**30),
        )
    found = int(ray.cluster_resources().get("GPU", 0))
    if found < cluster.gpus:
        ray.shutdown()
        allowed = f"the Ray cluster has {found} GPUs; choose a cluster= that fits"
        raise UserError("cluster.num_nodes x cluster.gpus_per_node", cluster.gpus, allowed)


def _check_reachable(address: str) -> None:
    """Raise OSError at once where Ray itself would wait for minutes and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # else "auto" or "local", which Ray looks up
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


def shutdown() -> None:
    """Leave the cluster, or end the local instance."""
    import ray

    ray.shutdown()


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Ray for the length of a block."""
    start_ray(cluster)
    try:
        yield
    finally:
        shutdown()


def cpus_booked(cluster: ClusterConfig) -> int:
    """CPUs that all roles ask for together; a reward worker books one."""
    rollout = cluster.rollout_workers * cluster.rollout_cpus
    learner = cluster.learner_workers * cluster.learner_cpus
    return math.ceil(rollout + learner + cluster.reward_workers)


def worker_environment(cpus: float, on_gpu: bool) -> dict[str, str]:
    """Thread counts and the allocator for an actor: without them every library takes all cores and they fight."""
    if on_gpu:
        return {"TOKENIZERS_PARALLELISM": "false"}
    return {
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(max(1, int(cpus))),
        # Idle OpenMP threads must sleep, not spin: another role needs the core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "DS_ACCELERATOR": "cpu",
        **_allocator(),
    }


def _allocator() -> dict[str, str]:
    """Ray's copy of jemalloc, told to keep what is freed, or where there is none glibc with huge pages.

    glibc gives every activation back and takes it anew at each step: a tenth of a step on a CPU is page faults.
    """
    ray = find_spec("ray")
    jemalloc = Path(ray.origin if ray and ray.origin else "").parent / "core" / "libjemalloc.so"
    if not jemalloc.is_file():
        return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    preloaded = [path for path in os.environ.get("LD_PRELOAD", "").split(":") if path and path != str(jemalloc)]
    return {
        "LD_PRELOAD": ":".join([*preloaded, str(jemalloc)]),
        "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always,metadata_thp:auto",
    }
