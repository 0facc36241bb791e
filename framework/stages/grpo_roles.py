"""The roles of a GRPO stage: all of them, or the half that saved rollouts leave to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.actors.pool import wait_for_any
from framework.actors.rank_group import RankGroup
from framework.artifacts import RewardCheckpoint, RolloutSet
from framework.data.rollouts import SavedGroup, header_of, read_header, read_rollouts
from framework.data.tokenizer_files import load_tokenizer
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.models.families.base import ModelConfig
from framework.models.public_layout import model_tensors, read_config
from framework.models.scalar_head import check_score
from framework.objectives.policy import PolicyObjective
from framework.rewards.base import RewardConfig
from framework.roles.critic import ActorCritic, CriticConfig, CriticWorker
from framework.roles.learner import LearnerConfig
from framework.roles.learner_group import LearnerGroup
from framework.roles.ledger import Ledger
from framework.roles.placement import Placement, Seats, reserved
from framework.roles.ray_clients import RayRewards, RayRollouts
from framework.roles.recorded import FixedPolicy, RecordedRewards, RecordedRollouts
from framework.roles.rl_clients import LearnerClient, Rewards, Rollouts
from framework.roles.rl_config import RlConfig
from framework.roles.transports import describe
from framework.stages.workers import sampling_pools
from framework.types import Prompt


@dataclass(frozen=True)
class Roles:
    """What the loop is given; `wait` returns once any of them has a result."""

    ledger: Ledger
    rollouts: Rollouts
    rewards: Rewards
    learner: LearnerClient
    wait: Callable[[], None]


@contextmanager
def recorded_roles(
    config: RlConfig,
    groups: Sequence[SavedGroup],
    learner: LearnerConfig,
    critic: CriticConfig | None,
    runtime: Runtime,
) -> Iterator[Roles]:
    """A learner that trains on saved groups; nothing else starts."""
    prompts = [group.scored.group.prompt for group in groups]
    ledger = Ledger(prompts, config.prompts_per_batch, config.max_staleness, runtime.seed, once=True)
    placement = Placement(runtime.cluster, runtime.cluster.learner_workers, critic=critic is not None)
    with reserved(placement, runtime.should_stop) as seats:
        group = _learner_group(learner, critic, runtime, seats)
        try:
            yield Roles(
                ledger,
                RecordedRollouts(groups),
                RecordedRewards(groups),
                group,
                lambda: wait_for_any(group.outstanding),
            )
        finally:
            group.shutdown()


@contextmanager
def live_roles(
    config: RlConfig,
    prompts: tuple[Prompt, ...],
    late: tuple[Prompt, ...],
    rollout: VllmConfig,
    rewards: RewardConfig,
    learner: LearnerConfig,
    critic: CriticConfig | None,
    runtime: Runtime,
) -> Iterator[Roles]:
    """Samplers and rewards, and a learner unless they are only to sample; `late` prompts come in the last steps."""
    ledger = Ledger(
        prompts, config.prompts_per_batch, config.max_staleness, runtime.seed, late=late, late_from=config.late_from
    )
    cluster = runtime.cluster
    ranks = 0 if config.sample_only else cluster.learner_workers
    placement = Placement(
        cluster,
        ranks,
        cluster.rollout_workers,
        rollout.tensor_parallel_size,
        cluster.reward_workers,
        critic=critic is not None and ranks > 0,
    )
    with (
        reserved(placement, runtime.should_stop) as seats,
        sampling_pools(
            cluster, rollout, rewards, learner.checkpoint, runtime.work_dir, seats, config.takes_turns(cluster)
        ) as pools,
    ):
        alone = config.sample_only
        if not alone:
            print(f"weights {describe(learner.transport)}", flush=True)
        group = FixedPolicy(learner.checkpoint) if alone else _learner_group(learner, critic, runtime, seats)
        rollouts = RayRollouts(pools.rollout, rollout.max_num_seqs // config.group_size + 1)
        waited: Callable[[], list[Any]] = lambda: [  # noqa: E731
            *pools.rollout.outstanding,
            *pools.reward.outstanding,
            *group.outstanding,
        ]
        try:
            yield Roles(ledger, rollouts, RayRewards(pools.reward), group, lambda: wait_for_any(waited()))
        finally:
            group.shutdown()


def _learner_group(
    config: LearnerConfig, critic: CriticConfig | None, runtime: Runtime, seats: Seats
) -> LearnerGroup | ActorCritic:
    cluster = runtime.cluster
    common: dict[str, Any] = {"deadlines": cluster.deadlines, "should_stop": runtime.should_stop}
    common["allow_s"] = runtime.allow_s
    policy = LearnerGroup(config, cluster.learner_workers, actor_options=seats.learner_options(), **common)
    if critic is None:
        return policy
    group = RankGroup("critic rank", CriticWorker, seats.critic_options(), (critic,), **common)
    return ActorCritic(policy, group, config.objective)


def check_critic(critic: RewardCheckpoint, base: Path, context: int) -> None:
    """Raise UserError unless the reward model has a head, and reads the tokens of the policy that `base` begins.

    It may be of another size or family, if its own context holds `context` tokens.
    """
    critic.check()
    of_critic, of_base = (header_of(load_tokenizer(place), 1.0, place).tokens for place in (critic.path, base))
    if of_critic != of_base:
        allowed = f"must have the tokenizer of the policy's base, {base}: a critic reads its tokens"
        raise UserError("critic", str(critic.path), allowed)
    check_score(critic.path)
    config = read_config(critic.path)
    model_tensors(critic.path, config)
    room = getattr(config, "max_position_embeddings", context)
    if room < context:
        allowed = f"must hold the sequences of the policy: engine.rollout.max_model_len={context}"
        raise UserError(f"critic: {critic.path / 'config.json'}", f"max_position_embeddings={room}", allowed)


def find_rollouts(directory: Path) -> RolloutSet:
    """Return the saved groups in `directory`; raises UserError if there are none."""
    if not directory.is_dir():
        allowed = "must be a directory that stage.grpo.save_rollouts has written"
        raise UserError("stage.grpo.rollouts_from", str(directory), allowed)
    return RolloutSet(directory.absolute()).check()


def usable_rollouts(
    rollouts: RolloutSet,
    base: Path,
    config: RlConfig,
    algorithm: PolicyObjective,
    learner: DeepSpeedConfig,
    model: ModelConfig,
) -> Sequence[SavedGroup]:
    """Return the groups that a run trains on; raises UserError unless they are this tokenizer's, fit, and suffice."""
    header, groups = read_header(rollouts.path), read_rollouts(rollouts)
    where, ours = "stage.grpo.rollouts_from", header_of(load_tokenizer(base), config.temperature, rollouts.path)
    if header.tokens != ours.tokens:
        found = f"tokens of another tokenizer ({header.vocabulary} of them)"
        raise UserError(where, found, f"{rollouts.path} must be sampled with the base's, which has {ours.vocabulary}")
    if header.temperature != config.temperature:
        allowed = f"{rollouts.path} was sampled at {header.temperature:g}: give that"
        raise UserError("stage.grpo.temperature", config.temperature, allowed)
    for group in groups:
        _check_group(group, config, model.vocab_size, learner.token_budget)
    wanted, needed = sum(algorithm.wants(group.scored) for group in groups), config.batches * config.prompts_per_batch
    if wanted < needed:
        most = wanted // config.prompts_per_batch * config.minibatches_per_rollout
        of = f" of {len(groups)} that algorithm.filter_on={algorithm.filter_on} leaves" if wanted < len(groups) else ""
        enough = f"they are enough for stage.grpo.steps={most}" if most else "they are not enough for one batch"
        allowed = f"stage.grpo.steps={config.steps} needs {needed} of {config.prompts_per_step} a step: {enough}"
        raise UserError(where, f"{wanted} groups{of}", allowed)
    return groups


def _check_group(group: SavedGroup, config: RlConfig, vocabulary: int, budget: int) -> None:
    prompt, responses = group.scored.group.prompt, group.scored.group.responses
    where = f"stage.grpo.rollouts_from: ticket {group.ticket}, prompt {prompt.id}"
    if len(responses) != config.group_size:
        raise UserError("stage.grpo.group_size", config.group_size, f"the saved groups have {len(responses)} responses")
    longest = max(len(response.token_ids) for response in responses)
    if longest > config.longest:
        raise UserError("stage.grpo.max_tokens", config.longest, f"a saved response has {longest} tokens")
    if len(prompt.token_ids) + longest > budget:
        raise UserError("engine.learner.token_budget", budget, f"{where} has {len(prompt.token_ids) + longest} tokens")
    most = max(max(prompt.token_ids), *(int(response.token_ids.max()) for response in responses))
    least = min(min(prompt.token_ids), *(int(response.token_ids.min()) for response in responses))
    if most >= vocabulary or least < 0:
        raise UserError(where, most if most >= vocabulary else least, f"the model's tokens are 0 to {vocabulary - 1}")
