"""Evaluation in the middle of training: the rollout workers answer held-out prompts at the version just trained.

Held-out prompts go through the same clients as those that are trained on; their tickets are below 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from framework.data.shuffle import seed_of
from framework.errors import ResponsesLost, UserError
from framework.roles.rl_clients import Rewards, Rollouts
from framework.stored import Sampled, Scored, scored_group
from framework.types import Prompt, RewardScore, SamplingParams


@dataclass(frozen=True)
class HeldOut:
    """What is asked at each evaluation, and what counts."""

    prompts: tuple[Prompt, ...]
    params: SamplingParams  # n responses to each
    # Names and values of what is recorded; the first one's is the score by which the best checkpoint is chosen.
    numbers: Callable[[Sequence[Scored]], Mapping[str, float]]
    votes_by: tuple[str, ...] = ()  # rewards by which answers are compared for a majority vote; none: no votes

    def __post_init__(self) -> None:
        if not self.prompts:
            allowed = "needs some: data.heldout, or a data.heldout_share of data.train"
            raise UserError("stage.grpo.evaluate_every", "no held-out prompts", allowed)


@dataclass
class Evaluation:
    """One evaluation under way. Seeds are of the run and the prompt: every version is asked in the same way."""

    held_out: HeldOut
    seed: int
    _waiting: deque[int] = field(init=False)  # places of prompts that no worker has
    _groups: dict[int, Sampled] = field(default_factory=dict, init=False)
    _scored: dict[int, Scored] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._waiting = deque(range(len(self.held_out.prompts)))

    @property
    def done(self) -> bool:
        """Whether every prompt is answered and scored."""
        return len(self._scored) == len(self.held_out.prompts)

    @property
    def groups(self) -> list[Scored]:
        """What is scored so far, in the prompts' order."""
        return [scored for _, scored in sorted(self._scored.items())]

    def issue(self, rollouts: Rollouts) -> int:
        """Give prompts to the workers that have room; returns how many."""
        count = min(len(self._waiting), rollouts.free_slots())
        for _ in range(count):
            place = self._waiting.popleft()
            prompt = self.held_out.prompts[place]
            params = replace(self.held_out.params, seed=seed_of(self.seed, "evaluate", prompt.id))
            rollouts.submit(-1 - place, prompt, params)
        return max(count, 0)

    def sampled(self, ticket: int, group: Sampled | None, rewards: Rewards) -> None:
        """Pass a group on to be scored; None: its worker died, and another will be asked."""
        if group is None:
            self._waiting.append(-1 - ticket)
        else:
            self._groups[ticket] = group
            rewards.submit(ticket, group, self.held_out.votes_by)

    def scored(
        self, ticket: int, scores: tuple[RewardScore, ...] | ResponsesLost | None, rewards: Rewards
    ) -> Scored | None:
        """Take a group's scores; None: their worker died, and they are asked for again; lost ones are sampled again."""
        if isinstance(scores, ResponsesLost):
            del self._groups[ticket]
            self._waiting.append(-1 - ticket)
            return None
        if scores is None:
            rewards.submit(ticket, self._groups[ticket], self.held_out.votes_by)
            return None
        self._scored[-1 - ticket] = found = scored_group(self._groups.pop(ticket), scores)
        return found
