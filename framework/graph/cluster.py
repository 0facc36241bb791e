"""What a run has to run on: the part of the configuration that a resumed run may change."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import UserError


@dataclass(frozen=True)
class ClusterConfig:
    """Machines and how the roles of a stage share them; `gpus_per_node: 0` runs every role on CPU cores."""

    num_nodes: int = 1
    gpus_per_node: int = 0
    cpus: int = 2  # of the whole cluster; Ray is started with them when the run starts it
    rollout_workers: int = 1
    rollout_cpus: float = 1.0  # of each worker
    learner_workers: int = 1
    learner_cpus: float = 1.0
    reward_workers: int = 1
    colocate: bool = False  # rollout workers and learners take turns on the same GPUs
    gpu_memory_gib: float = 80.0
    gpu_hour_usd: float = 2.0
    gpu_tflops: float = 989.0  # dense bf16 peak of one GPU (H100, H800)
    ray_address: str = ""  # empty: RAY_ADDRESS if it is set, else a local instance
    object_store_gib: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_nodes", "cpus", "rollout_workers", "learner_workers", "reward_workers"):
            if getattr(self, name) < 1:
                raise UserError(f"cluster.{name}", getattr(self, name), "must be at least 1")
        for name in ("rollout_cpus", "learner_cpus", "gpu_hour_usd"):
            if getattr(self, name) < 0:
                raise UserError(f"cluster.{name}", getattr(self, name), "must be 0 or more")
        for name in ("gpu_memory_gib", "gpu_tflops"):
            if getattr(self, name) <= 0:
                raise UserError(f"cluster.{name}", getattr(self, name), "must be above 0")
        if self.object_store_gib < 0.1:
            raise UserError("cluster.object_store_gib", self.object_store_gib, "must be at least 0.1, as Ray asks")
        if self.gpus_per_node < 0:
            raise UserError("cluster.gpus_per_node", self.gpus_per_node, "must be 0 (CPU only) or more")

    def training_workers(self, workers: int, min_workers: int, stage: str) -> int:
        """Ranks of a stage that asks for `workers` (0: as many as learners); UserError if `min_workers` is more."""
        found = workers or self.learner_workers
        if min_workers > found:
            raise UserError(f"{stage}.min_workers", min_workers, f"must be 0 to {found}, the workers")
        return found

    @property
    def gpu_share(self) -> float:
        """What a learner, or one GPU of a rollout worker, books of its GPU."""
        return 0.0 if not self.gpus_per_node else 0.5 if self.colocate else 1.0

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.num_nodes * self.gpus_per_node
