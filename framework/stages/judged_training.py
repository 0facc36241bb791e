"""What the stages that train on judged answers share: epochs, batch and rates; steps that follow from the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from framework.artifacts import Checkpoint, TokenizerDir, TokenShards
from framework.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, bounded
from framework.data.judged import JudgedRows
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.objectives.objective import Objective
from framework.stages.preferences import Kind
from framework.stages.training import check_falls, rate_over, train


@dataclass(frozen=True)
@bounded
class JudgedConfig:
    """Defaults: DeepSeek-R1's helpful reward model (batch 256, 6e-6, one epoch, rows of 8,192).

    Its learning rate's course is not published: constant here.
    """

    epochs: PositiveInt = 1
    prompts_per_step: PositiveInt = 256  # with all judged pairs of each; of labelled answers: answers
    max_tokens: PositiveInt = 8192  # of an answer with its prompt; token budget and context bound it too
    lr: PositiveFloat = 6e-6
    final_lr: NonNegativeFloat | None = None  # reached by a cosine over all steps; null: `lr` throughout
    warmup_steps: NonNegativeInt = 0
    workers: NonNegativeInt = 0  # data-parallel ranks; 0: cluster.learner_workers
    min_workers: NonNegativeInt = 0  # elastic: goes on with as few as this while a node is away; 0: always with all
    expected_prompts: PositiveInt = 66_000  # that a plan counts on where only the run knows how many there are
    max_failures: NonNegativeInt = 5  # restarts in a row without a new checkpoint between them
    validate_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 100
    engine: DeepSpeedConfig = DeepSpeedConfig()  # its `schedule` is not used: rates follow from the data

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.learner"}

    def __post_init__(self) -> None:
        check_falls(self)

    @property
    def kind(self) -> Kind:
        """What data it needs."""
        return "pairwise"

    @property
    def objective(self) -> Objective[Any, Any]:
        """What is minimised."""
        raise NotImplementedError

    def check_workers(self, cluster: ClusterConfig) -> int:
        """Return how many ranks `cluster` gives this stage; raises UserError if `min_workers` is more."""
        return cluster.training_workers(self.workers, self.min_workers)

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engine, for the model on the cluster."""
        from framework.stages.fit import fit_chats

        return fit_chats(self, model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        heads = model.num_attention_heads
        self.engine.check_topology(self.check_workers(cluster), model.experts_a_layer, heads=heads)

    def schedule(self, steps: int) -> LrSchedule:
        """The learning rate of a training of `steps` steps; raises UserError if the warm-up is no shorter."""
        return rate_over(self, steps)


@dataclass(frozen=True)
class JudgedInputs:
    """The model to start from; judged answers as tokens, and the tokenizer that made them."""

    base: Checkpoint
    shards: TokenShards
    tokenizer: TokenizerDir


@dataclass(frozen=True)
class JudgedTraining:
    """Base of the stages: steps follow from the data."""

    config: JudgedConfig
    model: ModelConfig  # sizes of the base
    prompts: int | None = None  # to train on; None: as many as an earlier stage of the run makes

    @property
    def engine(self) -> DeepSpeedConfig:
        """The trainer's engine."""
        return self.config.engine

    @property
    def max_tokens(self) -> int:
        """The longest row that can be trained on."""
        return min(self.config.max_tokens, self.engine.token_budget, self.model.max_position_embeddings)

    @property
    def expected(self) -> int:
        """Prompts that the plan counts on."""
        return self.config.expected_prompts if self.prompts is None else self.prompts

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs over the prompts that the plan counts on."""
        return self._steps(self.expected)

    def _steps(self, prompts: int) -> int:
        return -(-self.config.epochs * prompts // self.config.prompts_per_step)

    def train(self, inputs: JudgedInputs, runtime: Runtime, out: Path) -> None:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        from framework.roles.supervised_data import JudgedData

        config = self.config
        steps = self._steps(JudgedRows(inputs.shards.path / "train", seed=0).prompts)
        train(
            config,
            runtime,
            model=inputs.base.path,
            engine=replace(self.engine, schedule=config.schedule(steps), mtp_coef=0.0),
            data=JudgedData(inputs.shards.path, config.objective, config.prompts_per_step, config.epochs),
            steps=steps,
            tokenizer=inputs.tokenizer,
            out=out,
        )

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Batch arithmetic, memory, and hours if every prompt had two answers of full length."""
        from framework.models.estimate import pretraining_hours
        from framework.stages.memory import learner_role

        config, workers = self.config, self.config.check_workers(cluster)
        role = learner_role(self.model, self.engine, workers, cluster, self.max_tokens)
        tokens = config.epochs * self.expected * self.max_tokens * (2 if config.kind == "pairwise" else 1)
        return StageEstimate(
            batch={
                "prompts": self.expected if self.prompts is not None else f"{self.expected:,} expected",
                "epochs": config.epochs,
                "prompts a step": config.prompts_per_step,
                "steps": self.steps,
                "tokens of an answer, at most": self.max_tokens,
            },
            roles=(role,),
            hours=pretraining_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus),
            assumptions=("hours on judged answers count two a prompt, each at its longest",),
        )
