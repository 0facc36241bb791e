"""GRPO from a checkpoint on verifiable prompts: R1-Zero's stage, and the shape of every later RL stage."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from framework.artifacts import Checkpoint, PromptSet, RewardCheckpoint, RolloutSet, TokenShards
from framework.bounds import Bound, NonNegativeFloat, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.readers import read_prompts
from framework.data.tokenizer_files import copy_tokenizer, load_tokenizer
from framework.engines.cpu.heads import check_cpu_heads
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule, sum_over
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import RoleEstimate, StageEstimate
from framework.models.families.base import ModelConfig
from framework.objectives import grpo
from framework.objectives.policy import PolicyObjective
from framework.rewards.base import RewardConfig
from framework.rewards.connected import rule_names, with_checkpoints
from framework.roles.rl_config import RlConfig
from framework.roles.rl_evaluation import HeldOut
from framework.stages.evaluate import EvaluateConfig
from framework.stages.held_out import held_out
from framework.types import Prompt

if TYPE_CHECKING:
    from framework.roles.critic import CriticConfig
    from framework.roles.learner import PretrainingConfig


@dataclass(frozen=True)
class GrpoInputs:
    """The policy to start from and its prompts, or groups that were sampled before."""

    base: Checkpoint
    prompts: PromptSet | None = None
    late: PromptSet | None = None  # further prompts for the last `late_steps`
    helpful: RewardCheckpoint | None = None  # what the reward component of this name asks
    safety: RewardCheckpoint | None = None
    rollouts: RolloutSet | None = None
    text: TokenShards | None = None  # to learn beside responses, by `pretraining_coef`
    critic: RewardCheckpoint | None = None  # whose head the critic starts with; None: the base with a new one


@dataclass(frozen=True)
class GrpoOutputs:
    """The trained policy."""

    policy: Checkpoint


@dataclass(frozen=True)
class Engines:
    """Those of reinforcement learning: the sampler's and the learner's."""

    rollout: VllmConfig = VllmConfig()
    learner: DeepSpeedConfig = DeepSpeedConfig()


@dataclass(frozen=True)
@bounded
class GrpoConfig(RlConfig):
    """All settings of the stage: batches and schedule, the algorithm, its rewards and its engines.

    What a job's stages have in common stands above them: `rl`, `algorithm`, `reward`, `engine`.
    """

    fits_first: ClassVar[bool] = True  # it says how roles share the cluster
    inherits: ClassVar[Mapping[str, str]] = {
        "": "rl", "algorithm": "algorithm", "reward": "reward", "engine": "engine",
    }  # fmt: skip

    algorithm: PolicyObjective = field(default_factory=grpo.Grpo)  # how a batch becomes a loss
    reward: RewardConfig = field(kw_only=True)  # what scores a response
    engine: Engines = Engines()  # sampler and learner
    # of an algorithm with a critic; its other settings are the learner's. InstructGPT's, C.4
    critic_schedule: LrSchedule = LrSchedule(lr=9e-6)
    # the reward model whose head it starts with; null: the job's, or the base with a new one
    critic: Path | None = None
    # PPO-ptx's gamma: how strongly the nll of pretraining text counts in each step, where the job has such; 0: not
    pretraining_coef: NonNegativeFloat = 0.0
    pretraining_rows: PositiveInt = 512  # of a step; InstructGPT: 8 an episode
    pretraining_tokens: PositiveInt = 2048  # of a row
    # the policy that is given on is an average of all: after each batch so much of it stays; null: the last policy.
    # InstructGPT's is 0.992 (C.4)
    ema_decay: Annotated[float, Bound(above=0, below=1)] | None = None

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engines, for the model on the cluster."""
        from framework.stages.fit import fit_rl

        return fit_rl(self, model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        self.check_lengths(model)
        if self.max_staleness and self.takes_turns(cluster):
            allowed = "0 where roles take turns (cluster.turns=true): nobody samples while the learner trains"
            raise UserError("max_staleness", self.max_staleness, allowed)
        learner = self.engine.learner
        if self.takes_turns(cluster) and learner.zero_stage == 1 and learner.dtype == "bfloat16":
            allowed = "2 or 3 where roles take turns (cluster.turns=true): ZeRO-1 in bfloat16 cannot leave its GPU"
            raise UserError("engine.learner.zero_stage", 1, allowed)
        cluster.check_gpus(self.engine.rollout.tensor_parallel_size)
        if not cluster.gpus:
            check_cpu_heads(model)
        heads = model.num_attention_heads
        self.engine.learner.check_topology(cluster.learner_workers, model.experts_a_layer, "engine.learner", heads)

    def check_lengths(self, model: ModelConfig) -> None:
        """Raise UserError unless responses, context, rows, rewards and the algorithm fit each other."""
        context = self.engine.rollout.max_model_len
        if self.longest >= context:
            allowed = f"must leave room for the prompt in engine.rollout.max_model_len={context}"
            raise UserError("max_tokens", self.max_tokens, allowed)
        if context > model.max_position_embeddings:
            allowed = f"must be at most model.max_position_embeddings={model.max_position_embeddings}"
            raise UserError("engine.rollout.max_model_len", context, allowed)
        if context > (short := model.short_context):
            allowed = f"must be at most {short}: beyond, vLLM turns every position by longrope's long factors"
            raise UserError("engine.rollout.max_model_len", context, f"{allowed}, the learner those of long sequences")
        if self.engine.learner.token_budget < context:
            allowed = f"must hold a whole sequence: engine.rollout.max_model_len={context}"
            raise UserError("engine.learner.token_budget", self.engine.learner.token_budget, allowed)
        self.algorithm.check(self.longest, tuple(self.reward.components))
        if self.pretraining_coef and self.pretraining_tokens > self.engine.learner.token_budget:
            allowed = f"must be at most engine.learner.token_budget={self.engine.learner.token_budget}"
            raise UserError("pretraining_tokens", self.pretraining_tokens, allowed)
        if self.group_size < 2 and self.algorithm.group_baseline:
            raise UserError("group_size", self.group_size, "must be at least 2: the group is the baseline")
        self.reward.check_limit(self.longest)
        reset, each = self.algorithm.reference_reset_steps, self.minibatches_per_rollout
        if self.algorithm.kl_coef and reset % each:
            near = ", ".join(str(n) for n in (reset // each * each, (reset // each + 1) * each) if n)
            allowed = f"must be 0 (never) or a multiple of minibatches_per_rollout={each}: {near}"
            raise UserError("algorithm.reference_reset_steps", reset, allowed)


@dataclass(frozen=True)
class Grpo:
    """The stage."""

    config: GrpoConfig
    model: ModelConfig
    template: TemplateConfig = TemplateConfig()
    evaluate: EvaluateConfig | None = None  # how held-out prompts are asked every `config.evaluate_every` steps

    @property
    def length(self) -> str:
        """More steps go on from the last checkpoint, unless late prompts come in the last ones."""
        return "" if self.config.late_steps else "config.steps"

    def __post_init__(self) -> None:
        self.config.check_lengths(self.model)
        if self.config.evaluate_every and self.evaluate is None:
            raise UserError("stage.grpo.evaluate_every", self.config.evaluate_every, "needs stage.evaluate in this job")
        if self.evaluate is not None and self.evaluate.max_tokens >= self.rollout.max_model_len:
            allowed = (
                f"must be less than engine.rollout.max_model_len={self.rollout.max_model_len}, with evaluate_every"
            )
            raise UserError("stage.evaluate.max_tokens", self.evaluate.max_tokens, allowed)

    @property
    def algorithm(self) -> PolicyObjective:
        """How a batch becomes a loss."""
        return self.config.algorithm

    @property
    def rewards(self) -> RewardConfig:
        """What scores a response."""
        return self.config.reward

    @property
    def rollout(self) -> VllmConfig:
        """The sampler's engine."""
        return self.config.engine.rollout

    @property
    def learner(self) -> DeepSpeedConfig:
        """The learner's engine."""
        return self.config.engine.learner

    def look_ahead(self) -> str:
        """Raise UserError if the directory for rollouts cannot be made."""
        if (given := self.config.save_rollouts) is not None:
            place = next(path for path in (given.absolute(), *given.absolute().parents) if path.exists())
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                raise UserError(
                    "stage.grpo.save_rollouts", str(given), "must be a directory that can be made and written"
                )
        return ""

    def run(self, inputs: GrpoInputs, runtime: Runtime) -> GrpoOutputs:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        from framework.data.rollouts import header_of
        from framework.models.public_layout import dequantised
        from framework.roles.learner import LearnerConfig
        from framework.roles.recorded import RolloutSaver
        from framework.roles.rl_loop import RlLoop
        from framework.roles.transports import transport_of
        from framework.stages.grpo_roles import live_roles, recorded_roles, usable_rollouts

        config = self.config
        base = dequantised(inputs.base.path, runtime.work_dir / "base")  # as V3-Base is published
        tokenizer = load_tokenizer(inputs.base.path)
        models = {"helpful": inputs.helpful, "safety": inputs.safety}
        connected = {name: model.path for name, model in models.items() if model is not None}
        rewards = with_checkpoints(self.rewards, connected).at_limit(config.longest)
        objective = self.algorithm.at_limit(config.longest)
        engine = replace(self.learner, keep_versions=max(self.learner.keep_versions, config.max_staleness))
        text, decay, transport = self._text(inputs, runtime.seed), config.ema_decay, transport_of(runtime.cluster)
        learner = LearnerConfig(base, engine, objective, config.temperature, True, text, decay, transport)
        critic = self._critic(inputs, engine, runtime.seed, base)
        asked = None
        if inputs.rollouts is not None:
            groups = usable_rollouts(inputs.rollouts, inputs.base.path, config, objective, self.learner, self.model)
            starting = recorded_roles(config, groups, learner, critic, runtime)
        else:
            prompts, asked = self._prompts(inputs, tokenizer)
            late = () if inputs.late is None else self._tokenized(inputs.late, tokenizer)
            starting = live_roles(config, prompts, late, self.rollout, rewards, learner, critic, runtime)
        saver, directory = None, runtime.artifact_dir("policy")
        if config.save_rollouts is not None:
            header = header_of(tokenizer, config.temperature, runtime.work_dir)
            saver = RolloutSaver(config.save_rollouts.absolute(), header)
            saver.begin()  # before engines start
        with starting as roles:
            RlLoop(
                config=config,
                algorithm=objective,
                ledger=roles.ledger,
                rollouts=roles.rollouts,
                rewards=roles.rewards,
                learner=roles.learner,
                tracker=runtime.tracker,
                directory=runtime.work_dir,
                policy=directory,
                should_stop=runtime.should_stop,
                wait=roles.wait,
                turns=config.takes_turns(runtime.cluster),
                max_failed_share=rewards.max_failed_share,
                saver=saver,
                held_out=asked,
                finish_export=partial(copy_tokenizer, inputs.base.path),
            ).run()
        copy_tokenizer(inputs.base.path, directory)
        return GrpoOutputs(Checkpoint(directory))

    def _text(self, inputs: GrpoInputs, seed: int) -> PretrainingConfig | None:
        from framework.roles.learner import PretrainingConfig

        config = self.config
        if not config.pretraining_coef:
            return None
        if inputs.text is None:
            raise UserError("pretraining_coef", config.pretraining_coef, "must be 0: the job has no pretraining text")
        rows, tokens = config.pretraining_rows, config.pretraining_tokens
        return PretrainingConfig(inputs.text.path, config.pretraining_coef, rows, tokens, seed)

    def _critic(self, inputs: GrpoInputs, engine: DeepSpeedConfig, seed: int, base: Path) -> CriticConfig | None:
        """What the critic is built from; raises UserError for one of another tokenizer, or without its head."""
        if (objective := self.algorithm.critic) is None:
            return None
        from framework.roles.critic import CriticConfig
        from framework.stages.grpo_roles import check_critic

        given = self.given_critic or inputs.critic
        if given is not None:
            check_critic(given, inputs.base.path, self.rollout.max_model_len)
        schedule = replace(engine, schedule=self.config.critic_schedule, keep_versions=0)
        return CriticConfig(given.path if given else base, schedule, objective, seed)

    @property
    def given_critic(self) -> RewardCheckpoint | None:
        """The reward model that the settings name."""
        return None if self.config.critic is None else RewardCheckpoint(self.config.critic.absolute())

    def _prompts(self, inputs: GrpoInputs, tokenizer: Any) -> tuple[tuple[Prompt, ...], HeldOut | None]:
        """The prompts to train on, and what is asked of the held-out ones; raises UserError if one does not fit."""
        assert inputs.prompts is not None  # the job's graph has one or the other
        prompts = self._tokenized(inputs.prompts, tokenizer)
        if inputs.late is not None:  # reward models are for those: a prompt that names no rewards is scored by rules
            rules = rule_names(self.rewards)
            prompts = tuple(p if p.rewards else replace(p, rewards=rules) for p in prompts)
        if self.evaluate is None or not self.config.evaluate_every:
            return prompts, None
        file = inputs.prompts.path / "heldout.jsonl"
        return prompts, held_out(file, tokenizer, self.rollout.max_model_len, self.template, self.evaluate)

    def _tokenized(self, prompts: PromptSet, tokenizer: Any) -> tuple[Prompt, ...]:
        found = read_prompts(prompts.path / "train.jsonl")
        self.rewards.at_limit(self.config.longest).check_prompts(found)
        return tokenize_prompts(tokenizer, found, self.rollout.max_model_len, self.config.longest, self.template)

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Batch arithmetic, memory per GPU of learner and sampler, hours from the response tokens at the limit."""
        from framework.models.estimate import rl_hours, sampler_memory
        from framework.roles.transports import describe, transport_of
        from framework.stages.memory import learner_role

        config = self.config
        workers, samplers = cluster.learner_workers, cluster.rollout_workers
        gpus = samplers * self.rollout.tensor_parallel_size if cluster.gpus else 0
        segment = self.rollout.max_model_len
        tokens = sum_over(config.max_tokens, config.steps) * config.prompts_per_step * config.group_size
        cached = self.rollout.max_num_seqs * self.rollout.max_model_len
        sampler = sampler_memory(self.model, self.rollout.tensor_parallel_size, cached)
        evaluations = sum(config.evaluates_at(step) for step in range(config.steps + 1))
        learner = learner_role(self.model, self.learner, workers, cluster, segment)
        roles: tuple[RoleEstimate, ...] = (
            RoleEstimate("rollout", samplers, gpus, sampler),
            learner,
            *([replace(learner, name="critic", gpus=0)] if self.algorithm.critic else []),
            RoleEstimate("reward", cluster.reward_workers, math.ceil(cluster.reward_workers * cluster.reward_gpus)),
        )
        if config.rollouts_from is not None:
            roles = roles[1:2]
        elif config.sample_only:
            roles = roles[::2]
        return StageEstimate(
            batch={
                "optimizer steps": config.steps,
                "policy versions": config.batches,
                "prompts a step": config.prompts_per_step,
                "responses a prompt (G)": config.group_size,
                "responses a step": config.prompts_per_step * config.group_size,
                "responses a rollout batch": config.prompts_per_batch * config.group_size,
                "staleness at most": config.max_staleness,
                **({"evaluations on the way": evaluations} if evaluations else {}),
                **({} if config.rollouts_from or config.sample_only else {"weights": describe(transport_of(cluster))}),
            },
            roles=roles,
            hours=rl_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus),
            assumptions=(
                "RL hours count every response at stage.grpo.max_tokens: an upper bound",
                *self.algorithm.notes(),
            ),
        )
