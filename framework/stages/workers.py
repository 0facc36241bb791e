"""Starting the sampling side of a stage: pools of rollout and reward actors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from framework.actors.pool import WorkerPool
from framework.engines.cpu.environment import worker_environment
from framework.engines.device import device_environment
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.rewards.base import RewardConfig
from framework.roles.reward import RewardWorker
from framework.roles.rollout import RolloutWorker


@dataclass(frozen=True)
class SamplingPools:
    """Rollout workers that load `checkpoint` when they start, and reward workers."""

    rollout: WorkerPool
    reward: WorkerPool


@contextmanager
def sampling_pools(
    cluster: ClusterConfig, engine: VllmConfig, rewards: RewardConfig, checkpoint: Path, logs: Path | None = None
) -> Iterator[SamplingPools]:
    """Start the actors (they get ready in the background) and kill them at the end.

    What rewards print, and the tracebacks of what they raise, goes to reward-N.log in `logs`, a file a worker.
    """
    import ray

    gpus = engine.tensor_parallel_size * cluster.gpu_share
    environment = {"env_vars": worker_environment(cluster.rollout_cpus, gpus > 0)}
    rollout_class = ray.remote(RolloutWorker).options(
        num_cpus=cluster.rollout_cpus, num_gpus=gpus, max_restarts=-1, max_concurrency=1000, runtime_env=environment
    )
    own = cluster.reward_gpus  # without any it sees none: a user's reward must not take a sampler's memory
    seen = {"env_vars": device_environment(gpu=own > 0)}
    reward_class = ray.remote(RewardWorker).options(num_cpus=1, num_gpus=own, max_restarts=-1, runtime_env=seen)
    response_s = rewards.time_limit_s + rewards.startup_limit_s  # at worst each one kills its process
    pools = SamplingPools(
        WorkerPool(
            "rollout",
            [rollout_class.remote(engine) for _ in range(cluster.rollout_workers)],
            set_up=lambda actor: actor.start.remote(checkpoint),
            deadlines=cluster.deadlines,
            asks={"CPU": cluster.rollout_cpus, "GPU": gpus},
        ),
        WorkerPool(
            "reward",
            [
                reward_class.remote(rewards, logs and logs / f"reward-{place}.log")
                for place in range(cluster.reward_workers)
            ],
            set_up=lambda actor: actor.start.remote(),
            deadlines=cluster.deadlines,
            least_s={
                "score": lambda group: response_s * len(group.responses),
                "judge": lambda group, _: 3 * response_s * len(group.responses),
            },
            asks={"CPU": 1.0, "GPU": own},
        ),
    )
    try:
        yield pools
    finally:
        pools.rollout.shutdown()
        pools.reward.shutdown()
