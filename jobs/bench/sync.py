"""Weights from one learner's publish to every rollout worker's acknowledgement, by model size and number of workers."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from framework.engines.memory_file import MemoryWriter
from framework.engines.vllm_engine import VllmConfig
from framework.engines.weights import flatten, write
from framework.models.families.base import ModelConfig
from framework.models.spec import build_model
from framework.roles.rollout import RolloutWorker
from framework.types import PublishedWeights
from jobs.bench._checkpoints import dense, save_checkpoint, tiny_v3
from jobs.bench._common import report, spread


class Publisher:
    """Stands for a learner: holds the weights and publishes them on demand."""

    def __init__(self, spec: ModelConfig) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        model = build_model(spec, seed=1).float()
        self._owner: MemoryWriter | None = None
        self._tensors = list(revert_weight_conversion(model, model.state_dict()).items())

    def publish(self, version: int, payload: bool) -> PublishedWeights:
        """This rank's share: all of it, in this process's memory or, as a payload, in what is returned."""
        if payload:
            return flatten(self._tensors, version)
        published, self._owner = write(self._tensors, version, "learner rank 0")
        return published

    def size(self) -> int:
        """Bytes."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self._tensors)


def main(argv: list[str]) -> int:
    """Print and store seconds and GB/s for each size and number of workers."""
    parser = argparse.ArgumentParser("framework bench sync", description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="processes of each worker")
    parser.add_argument("--payloads", action="store_true", help="also as payloads of Ray's object store")
    options = parser.parse_args(argv)
    import ray

    rows = []
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as directory:
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}}
        ray.init(
            address="local",
            num_cpus=1 + max(options.workers),
            object_store_memory=3 * 2**30,
            include_dashboard=False,
            _temp_dir=directory,
            runtime_env=environment,
        )
        try:
            specs = {"v3_tiny": tiny_v3(), **{f"dense {size} MB": dense(size) for size in options.megabytes}}
            for name, spec in specs.items():
                checkpoint = save_checkpoint(spec, Path(directory) / name.replace(" ", "_"))
                for count in options.workers:
                    rows += _measure(name, spec, checkpoint, count, options)
        finally:
            ray.shutdown()
    report("sync", rows, {"rounds": options.rounds, "tensor parallel": options.tensor_parallel})
    return 0


def _measure(
    name: str, spec: ModelConfig, checkpoint: Path, count: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    import ray

    cores, parallel = sorted(os.sched_getaffinity(0)), options.tensor_parallel
    configs = [
        VllmConfig(
            "float32", 128, 32, kv_cache_gib=0.25, mla=False, warm_up=False, tensor_parallel_size=parallel,
            cores=(cores[i % len(cores)],) if parallel == 1 else None,
        )
        for i in range(count)
    ]  # fmt: skip
    workers: list[Any] = [ray.remote(RolloutWorker).options(num_cpus=1).remote(config) for config in configs]
    publisher: Any = ray.remote(Publisher).options(num_cpus=1).remote(spec)
    ray.get([worker.start.remote(checkpoint) for worker in workers])
    gigabytes = ray.get(publisher.size.remote()) / 1e9
    ways = (False, True) if options.payloads else (False,)
    seconds: dict[bool, list[float]] = {payload: [] for payload in ways}
    publishing: dict[bool, list[float]] = {payload: [] for payload in ways}
    for turn in range(options.rounds + 1):
        for place, payload in enumerate(ways):  # in turns, so that all have the same load beside them
            version, began = 1 + turn * len(ways) + place, time.perf_counter()
            share = publisher.publish.remote(version, payload)
            ray.wait([share], fetch_local=False)
            published = time.perf_counter()
            acknowledged = ray.get([worker.update_weights.remote(version, share) for worker in workers])
            assert acknowledged == [version] * count, acknowledged
            if turn:  # the first one warms up
                seconds[payload].append(time.perf_counter() - began)
                publishing[payload].append(published - began)
            del share
    for actor in [*workers, publisher]:
        ray.kill(actor)
    return [
        {
            "model": name,
            "way": "payload" if payload else "mapped",
            "MB": round(1000 * gigabytes, 1),
            "workers": count,
            "seconds": (median := spread(seconds[payload])["median"]),
            "min": min(seconds[payload]),
            "max": max(seconds[payload]),
            "publishing": spread(publishing[payload])["median"],
            "GB/s received, all workers": count * options.tensor_parallel * gigabytes / median,
        }
        for payload in ways
    ]
