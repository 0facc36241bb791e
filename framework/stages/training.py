"""What the stages that train on next tokens share: ranks and restarts, and the tokenizer beside the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from framework.artifacts import Checkpoint, TokenizerDir
from framework.data.tokenizer_files import copy_tokenizer
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models.families.base import ModelConfig

if TYPE_CHECKING:
    from framework.roles.supervised_data import Data
    from framework.roles.supervised_milestones import Milestones


class FallingRate(Protocol):
    """The part of `SftConfig` and `JudgedConfig` that says how the learning rate goes over steps known later."""

    @property
    def lr(self) -> float: ...
    @property
    def final_lr(self) -> float | None: ...  # reached by a cosine over all steps; None: `lr` throughout
    @property
    def warmup_steps(self) -> int: ...


def check_falls(config: FallingRate) -> None:
    """Raise UserError for a rate that would rise."""
    if config.final_lr is not None and config.final_lr > config.lr:
        raise UserError("final_lr", config.final_lr, f"must be at most lr={config.lr:g}: the rate falls")


def rate_over(config: FallingRate, steps: int) -> LrSchedule:
    """The learning rate of a training of `steps` steps; raises UserError if the warm-up is no shorter."""
    if config.warmup_steps >= steps:
        raise UserError("warmup_steps", config.warmup_steps, f"must be less than the {steps} steps")
    if config.final_lr is None:
        return LrSchedule(config.lr, warmup_steps=config.warmup_steps)
    return LrSchedule(config.lr, "cosine", config.warmup_steps, steps, final_ratio=config.final_lr / config.lr)


class TrainingConfig(Protocol):
    """The part of `PretrainConfig` and `SftConfig` that says how a training is run, not what it learns."""

    @property
    def min_workers(self) -> int: ...
    @property
    def max_failures(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...

    def check_workers(self, cluster: ClusterConfig) -> int:
        """Ranks on this cluster."""
        ...


def train(
    config: TrainingConfig,
    runtime: Runtime,
    *,
    model: ModelConfig | Path,
    engine: DeepSpeedConfig,
    data: Data,
    steps: int,
    tokenizer: TokenizerDir | Checkpoint,
    out: Path,
    milestones: Milestones | None = None,
) -> Checkpoint:
    """Train to the end and export to `out`; resumes from the newest checkpoint in the stage's work directory.

    `model`: fresh weights of these sizes, or those of a Hugging Face checkpoint. Raises as `SupervisedLoop.run`.
    """
    from framework.roles.supervised_loop import SupervisedLoop
    from framework.roles.supervised_milestones import Milestones
    from framework.roles.training_worker import SupervisedRun

    cluster = runtime.cluster
    run = SupervisedRun(
        model=model,
        engine=engine,
        data=data,
        out=out,
        work_dir=runtime.work_dir,
        steps=steps,
        validate_every=config.validate_every,
        checkpoint_every=config.checkpoint_every,
        seed=runtime.seed,
        workers=config.check_workers(cluster),
        min_workers=config.min_workers,
        max_failures=config.max_failures,
        cpus_per_worker=cluster.learner_cpus,
        gpus_per_worker=1.0 if cluster.gpus else 0.0,
        deadlines=cluster.deadlines,
        milestones=replace(milestones or Milestones(), tokenizer=tokenizer.path),
    )
    SupervisedLoop(run, runtime.tracker, runtime.should_stop, runtime.allow_s).run()
    copy_tokenizer(tokenizer.path, out)
    return Checkpoint(out)
