"""Supervised fine-tuning of a checkpoint on conversations, of which it learns the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from framework.artifacts import Checkpoint, PromptSet, TokenizerDir, TokenShards
from framework.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, bounded
from framework.data.chat_shards import ChatRows
from framework.data.readers import read_prompts
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.evaluate import EvaluateConfig
from framework.stages.sft_evaluation import EvaluatedTraining
from framework.stages.training import check_falls, rate_over, train


@dataclass(frozen=True)
@bounded
class SftConfig:
    """Epochs, batch and learning rate. Defaults: the fine-tunings of DeepSeek-R1 (2 to 3 epochs)."""

    epochs: PositiveInt = 2
    chats_per_step: PositiveInt = 128
    # of a conversation; the learner's token budget and the model's context bound it too
    max_tokens: PositiveInt = 32_768
    lr: PositiveFloat = 5e-5
    final_lr: NonNegativeFloat = 5e-6  # reached by a cosine over all steps
    warmup_steps: NonNegativeInt = 0
    workers: NonNegativeInt = 0  # data-parallel ranks; 0: cluster.learner_workers
    min_workers: NonNegativeInt = 0  # elastic: goes on with as few as this while a node is away; 0: always with all
    expected_chats: PositiveInt = 800_000  # that a plan counts on where only the run knows how many there are
    max_failures: NonNegativeInt = 5  # restarts in a row without a new checkpoint between them
    validate_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 100
    export_every: NonNegativeInt = 0  # steps between Hugging Face exports beside the checkpoints; 0: none
    # steps between evaluations on data.heldout, as stage.evaluate says, and after the last; 0: none (job=sft)
    evaluate_every: NonNegativeInt = 0
    # which model the stage gives on; best: of the highest pass@1 with evaluate_every, else of the lowest held-out loss
    export: Literal["last", "best"] = "last"
    engine: DeepSpeedConfig = DeepSpeedConfig()  # its `schedule` is not used: rates follow from the conversations

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.learner"}

    def __post_init__(self) -> None:
        check_falls(self)
        if self.evaluate_every % self.checkpoint_every:
            allowed = f"must be a multiple of checkpoint_every={self.checkpoint_every}: training goes on from there"
            raise UserError("evaluate_every", self.evaluate_every, allowed)

    def check_workers(self, cluster: ClusterConfig) -> int:
        """Return how many ranks `cluster` gives this stage; raises UserError if `min_workers` is more."""
        return cluster.training_workers(self.workers, self.min_workers)

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engines, for the model on the cluster."""
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
class SftInputs:
    """The model to start from; marked tokens, and the tokenizer that made them: it travels with the checkpoint."""

    base: Checkpoint
    shards: TokenShards
    tokenizer: TokenizerDir
    prompts: PromptSet | None = None  # whose held-out part is asked every `evaluate_every` steps


@dataclass(frozen=True)
class Tuned:
    """The fine-tuned model."""

    tuned: Checkpoint


@dataclass(frozen=True)
class Sft:
    """The stage: its steps, and so its learning rates, follow from the conversations."""

    config: SftConfig
    model: ModelConfig  # sizes of the base
    chats: int | None = None  # to train on; None: as many as an earlier stage of the run makes
    evaluate: EvaluateConfig | None = None  # how held-out prompts are asked every `config.evaluate_every` steps

    def __post_init__(self) -> None:
        if self.config.evaluate_every and self.evaluate is None:
            allowed = "needs job=sft, and prompts with answers as data.heldout"
            raise UserError("stage.sft.evaluate_every", self.config.evaluate_every, allowed)

    @property
    def engine(self) -> DeepSpeedConfig:
        """The trainer's engine."""
        return self.config.engine

    @property
    def max_tokens(self) -> int:
        """The longest conversation that can be trained on."""
        return min(self.config.max_tokens, self.engine.token_budget, self.model.max_position_embeddings)

    @property
    def expected(self) -> int:
        """Conversations that the plan counts on."""
        return self.config.expected_chats if self.chats is None else self.chats

    @property
    def steps(self) -> int:
        """Optimizer steps of all epochs over the conversations that the plan counts on."""
        return self._steps(self.expected)

    def _steps(self, chats: int) -> int:
        return -(-self.config.epochs * chats // self.config.chats_per_step)

    def run(self, inputs: SftInputs, runtime: Runtime) -> Tuned:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        from framework.roles.supervised_data import ChatData
        from framework.roles.supervised_milestones import Milestones

        config = self.config
        steps = self._steps(ChatRows(inputs.shards.path / "train", seed=0).meta.chats)
        loss_decides = config.export == "best" and not config.evaluate_every
        milestones = Milestones(config.export_every, "best" if loss_decides else "last")

        def train_until(step: int, out: Path, within: Runtime) -> Checkpoint:
            return train(
                config,
                within,
                model=inputs.base.path,
                engine=replace(self.engine, schedule=config.schedule(steps)),
                data=ChatData(inputs.shards.path, config.chats_per_step, config.epochs),
                steps=step,
                tokenizer=inputs.tokenizer,
                out=out,
                milestones=milestones,
            )

        tuned = runtime.artifact_dir("tuned")
        if not config.evaluate_every:
            return Tuned(train_until(steps, tuned, runtime))
        assert self.evaluate is not None
        assert inputs.prompts is not None
        prompts = read_prompts(inputs.prompts.path / "heldout.jsonl")[: self.evaluate.max_prompts or None]
        evaluated = EvaluatedTraining(config.evaluate_every, self.evaluate, prompts, config.export)
        evaluated.run(steps, runtime, train_until, tuned)
        return Tuned(Checkpoint(tuned))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Batch arithmetic, memory by ZeRO and expert-parallel size, hours if all conversations were of full length."""
        from framework.models.estimate import pretraining_hours
        from framework.stages.memory import learner_role

        config, workers = self.config, self.config.check_workers(cluster)
        role = learner_role(self.model, self.engine, workers, cluster, self.max_tokens)
        tokens = config.epochs * self.expected * self.max_tokens
        return StageEstimate(
            batch={
                "conversations": self.expected if self.chats is not None else f"{self.expected:,} expected",
                "epochs": config.epochs,
                "conversations a step": config.chats_per_step,
                "steps": self.steps,
                "tokens of a conversation, at most": self.max_tokens,
            },
            roles=(role,),
            hours=pretraining_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus),
            assumptions=("SFT hours count every conversation at its longest: an upper bound",),
        )
