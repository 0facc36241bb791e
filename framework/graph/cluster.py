"""What a run has to run on: the part of the configuration that a resumed run may change."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated

from framework.bounds import Bound, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, bounded
from framework.errors import UserError
from framework.graph.deadlines import Deadlines

_ADDRESS = re.compile(r"(ray://)?(\[[^\]\s]+\]|[^:/\s]+):\d{1,5}|auto|local")
PROCESSES_A_CORE = 4  # more than that wait for one another longer than any time limit allows


@dataclass(frozen=True)
@bounded
class ClusterConfig:
    """Machines and how the roles of a stage share them; `gpus_per_node: 0` runs every role on CPU cores."""

    num_nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    cpus: PositiveInt = 2  # of the whole cluster; Ray is started with them when the run starts it
    rollout_workers: PositiveInt = 1
    rollout_cpus: NonNegativeFloat = 1.0  # of each worker
    learner_workers: PositiveInt = 1
    learner_cpus: NonNegativeFloat = 1.0
    reward_workers: PositiveInt = 1
    # of each worker, for rewards that are models; shares of a GPU too
    reward_gpus: Annotated[float, Bound(least=0, most=1, note="a reward is on one GPU")] = 0.0
    colocate: bool = False  # rollout workers and learners share the GPUs
    turns: bool = False  # of which one has them at a time; needs colocate, and stages with max_staleness=0
    gpu_memory_gib: PositiveFloat = 80.0
    gpu_hour_usd: NonNegativeFloat = 2.0
    gpu_tflops: PositiveFloat = 989.0  # dense bf16 peak of one GPU (H100, H800)
    ray_address: str = ""  # empty: RAY_ADDRESS if it is set, else a local instance
    object_store_gib: Annotated[float, Bound(least=0.1, most=65_536, note="as Ray asks")] = 1.0
    deadlines: Deadlines = field(default_factory=Deadlines)  # how long the run waits for whom

    def __post_init__(self) -> None:
        roles = ("rollout", "learner", "reward")
        # A worker that books less than a core is a process all the same.
        booked = {role: getattr(self, f"{role}_workers") * max(getattr(self, f"{role}_cpus", 1), 1) for role in roles}
        if self.ray_address and not _ADDRESS.fullmatch(self.ray_address):
            raise UserError("cluster.ray_address", self.ray_address, "must be host:port, ray://host:port or auto")
        if self.turns and not (self.colocate and self.gpus):
            lacking = "cluster.colocate=true" if self.gpus else "GPUs: a CPU has nothing to hand over"
            raise UserError("cluster.turns", True, f"needs {lacking}")
        if self.reward_workers * self.reward_gpus > self.gpus:
            allowed = f"{self.reward_workers} reward workers, and the cluster has {self.gpus} GPUs"
            raise UserError("cluster.reward_gpus", self.reward_gpus, allowed)
        most = PROCESSES_A_CORE * self.cpus
        if sum(booked.values()) > most:
            largest = max(roles, key=lambda role: booked[role])
            asked = " + ".join(f"{booked[role]:g} {role}" for role in roles)
            allowed = f"the workers ask for {asked} CPUs, and cluster.cpus={self.cpus} can carry {most} at most"
            raise UserError(f"cluster.{largest}_workers", getattr(self, f"{largest}_workers"), allowed)

    def check_gpus(self, tensor_parallel_size: int) -> None:
        """Raise UserError if rollout workers of so many GPUs each, learners and reward workers do not find them."""
        rollout, learners = self.rollout_workers * tensor_parallel_size, self.learner_workers
        rewards = self.reward_workers * self.reward_gpus
        both = max(rollout, learners) if self.colocate else rollout + learners
        if self.gpus and both + rewards > self.gpus:
            asked = f"{rollout} for {self.rollout_workers} rollout workers, {self.learner_workers} for learners"
            asked += f", {rewards:g} for rewards" if rewards else ""
            sharing = "shared" if self.colocate else "not shared: cluster.colocate=false"
            raise UserError("cluster.num_nodes x cluster.gpus_per_node", self.gpus, f"must hold {asked}, {sharing}")
        self.check_tensor_parallel(tensor_parallel_size)

    def check_tensor_parallel(self, size: int) -> None:
        """Raise UserError unless a rollout worker of so many GPUs is part of a node, or whole nodes."""
        node = self.gpus_per_node
        if node and node % size and size % node:
            parts = [n for n in range(1, node + 1) if node % n == 0]
            whole = [n * node for n in range(2, self.num_nodes + 1)]
            allowed = f"must divide a node's {node} GPUs, or be whole nodes: {', '.join(map(str, parts + whole[:4]))}"
            raise UserError("engine.rollout.tensor_parallel_size", size, allowed)

    def check_sampling_gpus(self, tensor_parallel_size: int) -> None:
        """Raise UserError if rollout workers of so many GPUs each, by themselves, do not find them."""
        rollout = self.rollout_workers * tensor_parallel_size
        if self.gpus and rollout > self.gpus:
            asked = f"must hold {rollout} for {self.rollout_workers} rollout workers"
            raise UserError("cluster.num_nodes x cluster.gpus_per_node", self.gpus, asked)
        self.check_tensor_parallel(tensor_parallel_size)

    def training_workers(self, workers: int, min_workers: int) -> int:
        """Ranks of a stage that asks for `workers` (0: as many as learners); UserError if `min_workers` is more.

        Errors name `workers` and `min_workers` as they stand in the stage's node.
        """
        found = workers or self.learner_workers
        if min_workers > found:
            raise UserError("min_workers", min_workers, f"must be 0 to {found}, the workers")
        most = self.gpus or max(int(PROCESSES_A_CORE * self.cpus / max(self.learner_cpus, 1)), 1)
        if found > most:
            has = f"{self.gpus} GPUs" if self.gpus else f"cluster.cpus={self.cpus}"
            key = "workers" if workers else "cluster.learner_workers"
            raise UserError(key, found, f"must be at most {most}, which {has} can carry")
        return found

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.num_nodes * self.gpus_per_node
