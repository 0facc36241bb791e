"""Pretrain a base model on token shards by next-token prediction."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from framework.artifacts import Checkpoint, TokenizerDir, TokenShards
from framework.engines.batch_schedule import BatchRamp, BatchSchedule
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.spec import ModelConfig


@dataclass(frozen=True)
class PretrainConfig:
    """Batches and schedule; the optimizer is in `engine`. Defaults: DeepSeek-V3 section 4.2, final batch size."""

    steps: int = 235_000
    rows_per_step: int = 15_360
    row_tokens: int = 4096
    ramp: BatchRamp | None = None  # of rows_per_step, at the start
    engine: DeepSpeedConfig = DeepSpeedConfig()
    workers: int = 0  # data-parallel ranks; 0: cluster.learner_workers
    min_workers: int = 0  # elastic: goes on with as few as this while a node is away; 0: always with all
    max_failures: int = 5  # restarts in a row without a new checkpoint between them
    validate_every: int = 1000
    validation_rows: int = 64
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for name in ("steps", "rows_per_step", "row_tokens", "validate_every", "validation_rows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"stage.pretrain.{name}", getattr(self, name), "must be at least 1")
        if self.workers < 0:
            raise UserError("stage.pretrain.workers", self.workers, "must be 0 (as cluster.learner_workers) or more")
        if self.min_workers < 0:
            raise UserError("stage.pretrain.min_workers", self.min_workers, "must be 0 (always all workers) or more")
        if self.max_failures < 0:
            raise UserError("stage.pretrain.max_failures", self.max_failures, "must be 0 or more")
        _ = self.batches  # which checks the ramp against rows_per_step

    def check_workers(self, cluster: ClusterConfig) -> int:
        """Return how many ranks `cluster` gives this stage; raises UserError if `min_workers` is more."""
        return cluster.training_workers(self.workers, self.min_workers, "stage.pretrain")

    @property
    def batches(self) -> BatchSchedule:
        """Rows of each step."""
        return BatchSchedule(self.rows_per_step, self.row_tokens, self.ramp)


@dataclass(frozen=True)
class PretrainInputs:
    """Tokens, and the tokenizer that made them: it travels with the checkpoint."""

    shards: TokenShards
    tokenizer: TokenizerDir


@dataclass(frozen=True)
class Pretrained:
    """The base model."""

    base: Checkpoint


@dataclass(frozen=True)
class Pretrain:
    """The stage."""

    config: PretrainConfig
    model: ModelConfig

    def __post_init__(self) -> None:
        if self.config.row_tokens > self.model.max_position_embeddings:
            allowed = f"must be at most model.max_position_embeddings={self.model.max_position_embeddings}"
            raise UserError("stage.pretrain.row_tokens", self.config.row_tokens, allowed)

    def run(self, inputs: PretrainInputs, runtime: Runtime) -> Pretrained:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        from framework.roles.supervised_data import RowData
        from framework.roles.supervised_loop import LmRun, train_lm

        directory = runtime.artifact_dir("base")
        copy_tokenizer(inputs.tokenizer, directory)
        config, cluster = self.config, runtime.cluster
        run = LmRun(
            model=with_special_tokens(self.model, inputs.tokenizer.path),
            engine=config.engine,
            data=RowData(inputs.shards.path, config.batches, config.validation_rows),
            out=directory,
            work_dir=runtime.work_dir,
            steps=config.steps,
            validate_every=config.validate_every,
            checkpoint_every=config.checkpoint_every,
            seed=runtime.seed,
            workers=config.check_workers(cluster),
            min_workers=config.min_workers,
            max_failures=config.max_failures,
            cpus_per_worker=cluster.learner_cpus,
            gpus_per_worker=1.0 if cluster.gpus else 0.0,
        )
        train_lm(run, runtime.tracker, runtime.should_stop)
        return Pretrained(Checkpoint(directory))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Memory by ZeRO and expert-parallel size, and hours from the tokens."""
        from framework.models.estimate import pretraining_hours
        from framework.stages.memory import learner_role

        config = self.config
        workers = config.workers or cluster.learner_workers
        tokens, last = config.batches.tokens(config.steps), config.rows_per_step * config.row_tokens
        first = config.batches.tokens(1)
        return StageEstimate(
            batch={
                "steps": config.steps,
                "tokens a step": last if first == last else f"{first:,} to {last:,}",
                "tokens": f"{tokens / 1e9:,.3f} B",
                "micro-batches a rank and step": -(-last // (workers * config.engine.token_budget)),
            },
            roles=(learner_role(self.model, config.engine, workers, cluster, config.row_tokens),),
            hours=pretraining_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus),
        )


def with_special_tokens(model: ModelConfig, tokenizer: Path) -> ModelConfig:
    """Return the model with the begin, end and pad ids of its tokenizer: published sizes carry the published ids."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tokenizer)
    return replace(
        model,
        bos_token_id=found.bos_token_id,
        eos_token_id=found.eos_token_id,
        pad_token_id=found.pad_token_id,
    )


def copy_tokenizer(tokenizer: TokenizerDir | Checkpoint, directory: object) -> None:
    """Copy the tokenizer's files beside a checkpoint's weights."""
    for file in tokenizer.path.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy2(file, f"{directory}/{file.name}")
