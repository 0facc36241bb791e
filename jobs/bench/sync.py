"""Weights from one learner's publish to every rollout worker's acknowledgement, by model size and number of workers."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from framework.engines.vllm_engine import VllmConfig
from framework.engines.weights import flatten
from framework.models.families.base import ModelConfig
from framework.models.spec import build_model
from framework.roles.rollout import RolloutWorker
from framework.types import PublishedWeights
from jobs.bench._checkpoints import dense, save_checkpoint, tiny_v3
from jobs.bench._common import report, spread


class Publisher:
    """Stands for a learner: holds the weights and flattens them on demand."""

    def __init__(self, spec: ModelConfig) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        model = build_model(spec, seed=1).float()
        self._tensors = list(revert_weight_conversion(model, model.state_dict()).items())

    def publish(self, version: int) -> PublishedWeights:
        """This rank's share: all of it."""
        return flatten(self._tensors, version)

    def size(self) -> int:
        """Bytes."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self._tensors)


def main(argv: list[str]) -> int:
    """Print and store seconds and GB/s for each size and number of workers."""
    parser = argparse.ArgumentParser("framework bench sync", description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
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
                rows += [_measure(name, spec, checkpoint, count, options.rounds) for count in options.workers]
        finally:
            ray.shutdown()
    report("sync", rows, {"rounds": options.rounds})
    return 0


def _measure(name: str, spec: ModelConfig, checkpoint: Path, count: int, rounds: int) -> dict[str, Any]:
    import ray

    cores = sorted(os.sched_getaffinity(0))
    configs = [
        VllmConfig("float32", 128, 32, kv_cache_gib=0.25, cores=(cores[i % len(cores)],), mla=False, warm_up=False)
        for i in range(count)
    ]
    workers: list[Any] = [ray.remote(RolloutWorker).options(num_cpus=1).remote(config) for config in configs]
    publisher: Any = ray.remote(Publisher).options(num_cpus=1).remote(spec)
    ray.get([worker.start.remote(checkpoint) for worker in workers])
    gigabytes = ray.get(publisher.size.remote()) / 1e9
    seconds, publishing = [], []
    for version in range(1, rounds + 2):
        began = time.perf_counter()
        share = publisher.publish.remote(version)
        ray.wait([share], fetch_local=False)
        published = time.perf_counter()
        acknowledged = ray.get([worker.update_weights.remote(version, share) for worker in workers])
        assert acknowledged == [version] * count, acknowledged
        if version > 1:  # the first one warms up
            seconds.append(time.perf_counter() - began)
            publishing.append(published - began)
        del share
    for actor in [*workers, publisher]:
        ray.kill(actor)
    median = spread(seconds)["median"]
    return {
        "model": name,
        "MB": round(1000 * gigabytes, 1),
        "workers": count,
        "seconds": median,
        "min": min(seconds),
        "max": max(seconds),
        "publishing": spread(publishing)["median"],
        "GB/s received, all workers": count * gigabytes / median,
    }
