"""Pretrain a base model on token shards by next-token prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from framework.artifacts import Checkpoint, TokenizerDir, TokenShards
from framework.bounds import NonNegativeInt, PositiveFloat, PositiveInt, bounded
from framework.engines.batch_schedule import BatchRamp, BatchSchedule
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.training import train


@dataclass(frozen=True)
@bounded
class ContextPhase:
    """A short training on longer rows that teaches the model its stretched rotary embedding.

    Defaults: V3's first (section 4.3); its second is 480 rows of 131,072 tokens. All else is as pretraining ends.
    """

    steps: PositiveInt = 1000
    rows_per_step: PositiveInt = 1920
    row_tokens: PositiveInt = 32_768
    lr: PositiveFloat = 7.3e-6
    save_every: PositiveInt = 100  # steps; validation too


@dataclass(frozen=True)
@bounded
class PretrainConfig:
    """Batches and schedule; the optimizer is in `engine`. Defaults: DeepSeek-V3 section 4.2, final batch size."""

    steps: PositiveInt = 235_000
    rows_per_step: PositiveInt = 15_360
    row_tokens: PositiveInt = 4096
    ramp: BatchRamp | None = None  # of rows_per_step, at the start
    engine: DeepSpeedConfig = DeepSpeedConfig()
    workers: NonNegativeInt = 0  # data-parallel ranks; 0: cluster.learner_workers
    min_workers: NonNegativeInt = 0  # elastic: goes on with as few as this while a node is away; 0: always with all
    max_failures: NonNegativeInt = 5  # restarts in a row without a new checkpoint between them
    validate_every: PositiveInt = 1000
    validation_rows: PositiveInt = 64
    checkpoint_every: PositiveInt = 1000
    extend: tuple[ContextPhase, ...] = ()  # afterwards; until then nothing is stretched (`stages.extend`)

    def __post_init__(self) -> None:
        _ = self.batches  # which checks the ramp against rows_per_step
        lengths = [self.row_tokens, *(phase.row_tokens for phase in self.extend)]
        if lengths != sorted(set(lengths)):
            allowed = f"must rise, from above row_tokens={self.row_tokens}"
            raise UserError("extend.row_tokens", lengths[1:], allowed)

    def check_workers(self, cluster: ClusterConfig) -> int:
        """Return how many ranks `cluster` gives this stage; raises UserError if `min_workers` is more."""
        return cluster.training_workers(self.workers, self.min_workers)

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engines, for the model on the cluster."""
        from framework.stages.fit import fit_rows

        return fit_rows(self, model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        self.check_rows(model)
        heads = model.num_attention_heads
        self.engine.check_topology(self.check_workers(cluster), model.experts_a_layer, heads=heads)

    def check_rows(self, model: ModelConfig) -> None:
        """Raise UserError if the model's context is shorter than a row."""
        if self.row_tokens > model.max_position_embeddings:
            allowed = f"must be at most model.max_position_embeddings={model.max_position_embeddings}"
            raise UserError("row_tokens", self.row_tokens, allowed)

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

    length: ClassVar[str] = "config.steps"  # more of them go on from the last checkpoint

    config: PretrainConfig
    model: ModelConfig

    def __post_init__(self) -> None:
        self.config.check_rows(self.model)

    def run(self, inputs: PretrainInputs, runtime: Runtime) -> Pretrained:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        return train_rows(self.config, with_special_tokens(self.model, inputs.tokenizer.path), inputs, runtime)

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Memory by ZeRO and expert-parallel size, and hours from the tokens."""
        from framework.models.estimate import pretraining_hours

        tokens = self.config.batches.tokens(self.config.steps)
        hours = pretraining_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus)
        return estimate_rows(self.config, self.model, cluster, hours)


def train_rows(
    config: PretrainConfig, model: ModelConfig | Path, inputs: PretrainInputs, runtime: Runtime
) -> Pretrained:
    """Train fresh weights of these sizes, or a checkpoint's, on rows of the shards."""
    from framework.roles.supervised_data import RowData

    base = train(
        config,
        runtime,
        model=model,
        engine=config.engine,
        data=RowData(inputs.shards.path, config.batches, config.validation_rows),
        steps=config.steps,
        tokenizer=inputs.tokenizer,
        out=runtime.artifact_dir("base"),
    )
    return Pretrained(base)


def estimate_rows(config: PretrainConfig, model: ModelConfig, cluster: ClusterConfig, hours: float) -> StageEstimate:
    """The estimate of a training on rows that takes so many `hours`."""
    from framework.stages.memory import learner_role

    workers = config.workers or cluster.learner_workers
    micro = max(config.engine.token_budget // config.row_tokens, 1) * config.row_tokens  # at least one row
    last, first = config.rows_per_step * config.row_tokens, config.batches.tokens(1)
    return StageEstimate(
        batch={
            "steps": config.steps,
            "tokens a step": last if first == last else f"{first:,} to {last:,}",
            "tokens": f"{config.batches.tokens(config.steps) / 1e9:,.3f} B",
            "micro-batches a rank and step": -(-last // (workers * micro)),
        },
        roles=(learner_role(model, replace(config.engine, token_budget=micro), workers, cluster, config.row_tokens),),
        hours=hours,
    )


def with_special_tokens(model: ModelConfig, tokenizer: Path) -> ModelConfig:
    """Return the model with the begin, end and pad ids of its tokenizer: published sizes carry the published ids."""
    from framework.data.tokenizer_files import load_tokenizer

    found = load_tokenizer(tokenizer)
    return replace(
        model,
        bos_token_id=found.bos_token_id,
        eos_token_id=found.eos_token_id,
        pad_token_id=found.pad_token_id,
    )
