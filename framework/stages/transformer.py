"""Pretrain a model of `job=transformers` by its own objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from framework.artifacts import Checkpoint, TokenizerDir, TokenShards
from framework.bounds import FilledStr, NonNegativeInt, PositiveInt, bounded
from framework.convert import Component
from framework.data.tokenizer_files import load_tokenizer
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.pretrain import with_special_tokens
from framework.stages.training import train


@dataclass(frozen=True)
@bounded
class TransformerConfig:
    """A row of the table: its sizes, what it learns, and from how much. Defaults: BERT's (1810.04805, A.2)."""

    model: Component  # a ModelConfig
    learns: Component  # of `roles.text_data`
    tokenizer: FilledStr = "wordpiece"  # the stage that trains it
    steps: PositiveInt = 1_000_000
    sequences_per_step: PositiveInt = 256
    max_tokens: PositiveInt = 512  # of a sequence, special tokens counted
    engine: DeepSpeedConfig = DeepSpeedConfig()
    workers: NonNegativeInt = 0  # data-parallel ranks; 0: cluster.learner_workers
    min_workers: NonNegativeInt = 0  # elastic: goes on with as few as this while a node is away; 0: always with all
    max_failures: NonNegativeInt = 5  # restarts in a row without a new checkpoint between them
    validate_every: PositiveInt = 1000
    validation_sequences: PositiveInt = 64
    checkpoint_every: PositiveInt = 1000

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.learner"}

    def check_workers(self, cluster: ClusterConfig) -> int:
        """Return how many ranks `cluster` gives this stage; raises UserError if `min_workers` is more."""
        return cluster.training_workers(self.workers, self.min_workers)

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engine, for the model on the cluster."""
        from framework.stages.fit import fit_chats

        return fit_chats(self, model, cluster, lambda key: key == "engine.sp_size" or given(key))  # rows stay whole

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        if self.max_tokens > model.longest_row:
            allowed = f"must be at most {model.longest_row}: what model={model.name} has positions for"
            raise UserError("max_tokens", self.max_tokens, allowed)
        if self.max_tokens > self.engine.token_budget:
            allowed = f"must hold a sequence of max_tokens={self.max_tokens}"
            raise UserError("engine.token_budget", self.engine.token_budget, allowed)
        workers = self.check_workers(cluster)
        self.engine.check_topology(workers, model.experts_a_layer)
        if self.engine.sp_size > 1:
            raise UserError("engine.sp_size", self.engine.sp_size, "must be 1: rows of this stage stay whole")
        if self.engine.tensor_parallel:
            check_cut(model, self.engine.dtype, workers, self.min_workers)


@dataclass(frozen=True)
class TransformerInputs:
    """Sentences of tokens, and the tokenizer that made them: it travels with the checkpoint. `teacher`: to distil."""

    shards: TokenShards
    tokenizer: TokenizerDir
    teacher: Checkpoint | None = None


@dataclass(frozen=True)
class TrainedTransformer:
    """The model."""

    base: Checkpoint


@dataclass(frozen=True)
class PretrainTransformer:
    """The stage."""

    length: ClassVar[str] = "config.steps"  # more of them go on from the last checkpoint

    config: TransformerConfig

    @property
    def model(self) -> ModelConfig:
        """The sizes."""
        found: ModelConfig = self.config.model
        return found

    def run(self, inputs: TransformerInputs, runtime: Runtime) -> TrainedTransformer:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        model: ModelConfig | Path = with_special_tokens(self.model, inputs.tokenizer.path)
        teacher = None if inputs.teacher is None else inputs.teacher.path
        if isinstance(model, ModelConfig) and teacher is not None:
            check_teacher(teacher, inputs.tokenizer.path)
            model = student_of(model, teacher, runtime.work_dir / "student", runtime.seed)
        base = train(
            self.config,
            runtime,
            model=model,
            engine=replace(self.config.engine, mtp_coef=0.0),
            data=self.config.learns.data(source(self.config, inputs.shards.path, inputs.tokenizer.path, teacher)),
            steps=self.config.steps,
            tokenizer=inputs.tokenizer,
            out=runtime.artifact_dir("base"),
        )
        return TrainedTransformer(base)

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Memory, and hours if every sequence were full."""
        from framework.models.estimate import describe_parameters, pretraining_hours
        from framework.stages.memory import learner_role

        config, workers = self.config, self.config.check_workers(cluster)
        tokens = config.steps * config.sequences_per_step * config.max_tokens
        batch: dict[str, Any] = {
            "model": f"{self.model.name}: {describe_parameters(self.model)}",
            "learns": type(config.learns).__name__.lower(),
            "steps": config.steps,
            "tokens a step, at most": config.sequences_per_step * config.max_tokens,
            "tokens, at most": f"{tokens / 1e9:,.3f} B",
        }
        role = learner_role(self.model, config.engine, workers, cluster, config.max_tokens)
        hours = pretraining_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus)
        return StageEstimate(batch=batch, roles=(role,), hours=hours)


def check_cut(model: ModelConfig, dtype: str, workers: int, min_workers: int) -> None:
    """Raise UserError for a model, a number of ranks or a precision that tensor parallelism does not take."""
    if model.model_type != "gpt2":
        raise UserError("engine.tensor_parallel", True, f"must be false: GPT-2 alone is cut, not {model.model_type}")
    for key in ("num_attention_heads", "vocab_size"):
        if getattr(model, key) % workers:
            raise UserError("workers", workers, f"must divide model.{key}={getattr(model, key)}")
    if dtype != "float32":
        raise UserError("engine.dtype", dtype, "must be float32 with engine.tensor_parallel")
    if min_workers:
        raise UserError("min_workers", min_workers, "must be 0 with engine.tensor_parallel: each rank holds a part")


def source(config: TransformerConfig, shards: Path, tokenizer: Path, teacher: Path | None = None) -> Any:
    """What a row's `learns` reads."""
    from framework.roles.text_data import Source

    per_step, held_out = config.sequences_per_step, config.validation_sequences
    return Source(shards, tokenizer, per_step, config.max_tokens, held_out, teacher)


def check_teacher(teacher: Path, tokenizer: Path) -> None:
    """Raise UserError unless the teacher's tokens are the tokenizer's: a soft target is a token each."""
    theirs, ours = (load_tokenizer(directory).get_vocab() for directory in (teacher, tokenizer))
    if theirs != ours:
        differing = next((token for token in sorted(ours, key=ours.get) if theirs.get(token) != ours[token]), "")
        found = (
            f"{len(theirs)} tokens, {len(ours)} of the text" if len(theirs) != len(ours) else f"another {differing!r}"
        )
        raise UserError(f"teacher {teacher}", found, "must have the vocabulary of the text that it teaches on")


def student_of(sizes: ModelConfig, teacher: Path, directory: Path, seed: int) -> Path:
    """Write a checkpoint of these sizes that begins with the teacher's layers; returns its directory."""
    from framework.engines.checkpoint import load_hf
    from framework.models.spec import build_model
    from framework.models.student import copy_teacher

    given, student = load_hf(teacher, sizes.dtype), build_model(sizes, seed)
    try:
        copy_teacher(dict(given.named_parameters()), given.config.num_hidden_layers, student)
    except ValueError as error:
        raise UserError(f"teacher {teacher}", str(error), "must be a BERT of the student's width") from None
    student.save_pretrained(directory)
    return directory
