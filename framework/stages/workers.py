"""Starting the sampling side of a stage: pools of rollout and reward actors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from framework.actors.pool import WorkerPool
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.rewards.base import RewardConfig
from framework.roles.placement import Placement, Seats, reserved
from framework.roles.reward import RewardWorker
from framework.roles.rollout import RolloutWorker
from framework.roles.transports import least_seconds


@dataclass(frozen=True)
class SamplingPools:
    """Rollout workers that load `checkpoint` when they start, and reward workers."""

    rollout: WorkerPool
    reward: WorkerPool


@contextmanager
def sampling_pools(
    cluster: ClusterConfig,
    engine: VllmConfig,
    rewards: RewardConfig,
    checkpoint: Path,
    logs: Path | None = None,
    seats: Seats | None = None,
    turns: bool = False,
) -> Iterator[SamplingPools]:
    """Start the actors (they get ready in the background) and kill them at the end.

    What rewards print, and the tracebacks of what they raise, goes to reward-N.log in `logs`, a file a worker.
    `seats`: where samplers sit beside learners; by default they have the cluster's GPUs for themselves. `turns`: they
    start when the first weights come, as learners use the same GPUs until then.
    """
    if seats is None:
        alone = Placement(cluster, 0, cluster.rollout_workers, engine.tensor_parallel_size, cluster.reward_workers)
        with reserved(alone) as found, sampling_pools(cluster, engine, rewards, checkpoint, logs, found) as pools:
            yield pools
        return
    import ray

    rollout_class, options = ray.remote(RolloutWorker), seats.rollout_options()
    reward_class = ray.remote(RewardWorker)
    response_s = rewards.limit_s + rewards.startup_limit_s  # at worst each one kills its process
    pools = SamplingPools(
        WorkerPool(
            "rollout",
            [
                rollout_class.options(max_restarts=-1, max_concurrency=1000, **each).remote(engine, seat, turns)
                for each, seat in zip(options, seats.seats(), strict=True)
            ],
            set_up=lambda actor: actor.start.remote(checkpoint),
            deadlines=cluster.deadlines,
            least_s={"update_weights": lambda *_: least_seconds(checkpoint)},
            asks={"CPU": cluster.rollout_cpus, "GPU": options[0]["num_gpus"]},
        ),
        WorkerPool(
            "reward",
            [
                reward_class.options(max_restarts=-1, **each).remote(rewards, logs and logs / f"reward-{place}.log")
                for place, each in enumerate(seats.reward_options())
            ],
            set_up=lambda actor: actor.start.remote(),
            deadlines=cluster.deadlines,
            least_s={
                "score": lambda group: response_s * len(group.responses),
                "judge": lambda group, _: 3 * response_s * len(group.responses),
                "score_stored": lambda _, votes, *responses: (3 if votes else 1) * response_s * len(responses),
            },
            asks={"CPU": 1.0, "GPU": cluster.reward_gpus},
        ),
    )
    try:
        yield pools
    finally:
        pools.rollout.shutdown()
        pools.reward.shutdown()
