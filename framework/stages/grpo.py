"""GRPO from a checkpoint on verifiable prompts: R1-Zero's stage, and the shape of every later RL stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from framework.artifacts import Checkpoint, PromptSet
from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.readers import read_prompts
from framework.data.tokenizer_files import copy_tokenizer, load_tokenizer
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import sum_over
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import RoleEstimate, StageEstimate
from framework.models.families.base import ModelConfig
from framework.objectives.policy import PolicyObjective
from framework.rewards.base import RewardConfig
from framework.roles.rl_loop import RlConfig


@dataclass(frozen=True)
class GrpoInputs:
    """The policy to start from and its prompts."""

    base: Checkpoint
    prompts: PromptSet


@dataclass(frozen=True)
class GrpoOutputs:
    """The trained policy."""

    policy: Checkpoint


@dataclass(frozen=True)
class Grpo:
    """The stage."""

    length: ClassVar[str] = "config.steps"  # more of them go on from the last checkpoint

    config: RlConfig
    algorithm: PolicyObjective
    rewards: RewardConfig
    rollout: VllmConfig
    learner: DeepSpeedConfig
    model: ModelConfig
    template: TemplateConfig = TemplateConfig()

    def __post_init__(self) -> None:
        if self.config.longest >= self.rollout.max_model_len:
            allowed = f"must leave room for the prompt in engine.rollout.max_model_len={self.rollout.max_model_len}"
            raise UserError("stage.grpo.max_tokens", self.config.max_tokens, allowed)
        if self.rollout.max_model_len > self.model.max_position_embeddings:
            allowed = f"must be at most model.max_position_embeddings={self.model.max_position_embeddings}"
            raise UserError("engine.rollout.max_model_len", self.rollout.max_model_len, allowed)
        if self.learner.token_budget < self.rollout.max_model_len:
            allowed = f"must hold a whole sequence: engine.rollout.max_model_len={self.rollout.max_model_len}"
            raise UserError("engine.learner.token_budget", self.learner.token_budget, allowed)
        self.algorithm.check(self.config.longest, tuple(self.rewards.components))
        self.rewards.check_limit(self.config.longest)
        reset, each = self.algorithm.reference_reset_steps, self.config.minibatches_per_rollout
        if self.algorithm.kl_coef and reset % each:
            near = ", ".join(str(n) for n in (reset // each * each, (reset // each + 1) * each) if n)
            allowed = f"must be 0 (never) or a multiple of stage.grpo.minibatches_per_rollout={each}: {near}"
            raise UserError("algorithm.reference_reset_steps", reset, allowed)

    def run(self, inputs: GrpoInputs, runtime: Runtime) -> GrpoOutputs:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        from framework.models.public_layout import dequantised
        from framework.roles.clients import RayRewards, RayRollouts
        from framework.roles.cluster import worker_environment
        from framework.roles.learner import LearnerConfig
        from framework.roles.learner_group import LearnerGroup
        from framework.roles.ledger import Ledger
        from framework.roles.pool import wait_for_any
        from framework.roles.rl_loop import RlLoop
        from framework.stages.workers import sampling_pools

        config, cluster = self.config, runtime.cluster
        base = dequantised(inputs.base.path, runtime.work_dir / "base")  # as V3-Base is published
        tokenizer = load_tokenizer(inputs.base.path)
        found = read_prompts(inputs.prompts.path / "train.jsonl")
        rewards, objective = self.rewards.at_limit(config.longest), self.algorithm.at_limit(config.longest)
        rewards.check_prompts(found)
        prompts = tokenize_prompts(tokenizer, found, self.rollout.max_model_len, config.longest, self.template)
        engine = replace(self.learner, keep_versions=max(self.learner.keep_versions, config.max_staleness))
        learner_config = LearnerConfig(base, engine, objective, config.temperature, entropy=True)
        options = {
            "num_cpus": cluster.learner_cpus,
            "num_gpus": cluster.gpu_share,
            "runtime_env": {"env_vars": worker_environment(cluster.learner_cpus, bool(cluster.gpus))},
        }
        directory = runtime.artifact_dir("policy")
        with sampling_pools(cluster, self.rollout, rewards, base, runtime.work_dir) as pools:
            learner = LearnerGroup(
                learner_config,
                cluster.learner_workers,
                actor_options=[options] * cluster.learner_workers,
                deadlines=cluster.deadlines,
                should_stop=runtime.should_stop,
                allow_s=runtime.allow_s,
            )
            try:
                RlLoop(
                    config=config,
                    algorithm=objective,
                    ledger=Ledger(prompts, config.prompts_per_batch, config.max_staleness, runtime.seed),
                    rollouts=RayRollouts(pools.rollout, self.rollout.max_num_seqs // config.group_size + 1),
                    rewards=RayRewards(pools.reward),
                    learner=learner,
                    tracker=runtime.tracker,
                    directory=runtime.work_dir,
                    policy=directory,
                    should_stop=runtime.should_stop,
                    wait=lambda: wait_for_any(
                        pools.rollout.outstanding + pools.reward.outstanding + learner.outstanding
                    ),
                    max_failed_share=rewards.max_failed_share,
                ).run()
            finally:
                learner.shutdown()
        copy_tokenizer(inputs.base.path, directory)
        return GrpoOutputs(Checkpoint(directory))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Batch arithmetic, memory per GPU of learner and sampler, hours from the response tokens at the limit."""
        from framework.models.estimate import rl_hours, sampler_memory
        from framework.stages.memory import learner_role

        config = self.config
        workers, samplers = cluster.learner_workers, cluster.rollout_workers
        gpus = samplers * self.rollout.tensor_parallel_size if cluster.gpus else 0
        segment = self.rollout.max_model_len
        tokens = sum_over(config.max_tokens, config.steps) * config.prompts_per_step * config.group_size
        cached = self.rollout.max_num_seqs * self.rollout.max_model_len
        sampler = sampler_memory(self.model, self.rollout.tensor_parallel_size, cached)
        return StageEstimate(
            batch={
                "optimizer steps": config.steps,
                "policy versions": config.batches,
                "prompts a step": config.prompts_per_step,
                "responses a prompt (G)": config.group_size,
                "responses a step": config.prompts_per_step * config.group_size,
                "responses a rollout batch": config.prompts_per_batch * config.group_size,
                "staleness at most": config.max_staleness,
            },
            roles=(
                RoleEstimate("rollout", samplers, gpus, sampler),
                learner_role(self.model, self.learner, workers, cluster, segment, packed=True),
                RoleEstimate("reward", cluster.reward_workers),
            ),
            hours=rl_hours(self.model, tokens, cluster.gpus, cluster.gpu_tflops, cluster.cpus),
            assumptions=(
                "RL hours count every response at stage.grpo.max_tokens: an upper bound",
                *self.algorithm.notes(),
            ),
        )
