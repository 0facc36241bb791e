"""The roles of the GRPO loop as it sees them: rollout workers, reward workers, the learner group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from framework.algorithms.mismatch import Mismatch
from framework.errors import ResponsesLost
from framework.roles.rl_batch import TrainBatch
from framework.stored import Sampled
from framework.types import Prompt, RewardScore, SamplingParams, StepResult


@dataclass(frozen=True)
class TrainResult:
    """What the learner did with one batch."""

    steps: tuple[StepResult, ...]
    mismatch: Mismatch | None  # measured, and found small enough, before the first step
    seconds: float
    tokens: int  # of prompts and responses, those of skipped responses left out
    metrics: Mapping[str, float] = field(default_factory=dict)  # what else the learner has to tell, by a run's names


class Rollouts(Protocol):
    """The rollout workers as the loop sees them. A result of None: the worker died, the prompt is ours again."""

    def free_slots(self) -> int:
        """Groups that workers serving the newest version can take now."""
        ...

    def submit(self, ticket: int, prompt: Prompt, params: SamplingParams) -> None: ...

    def poll(self) -> list[tuple[int, Sampled | None]]: ...

    def publish(self, version: int, weights: Sequence[object]) -> None:
        """Start sending new weights; a worker gets no new prompts until it has acknowledged them."""
        ...

    def sleep(self) -> bool:
        """Send workers to sleep as they have nothing under way; whether all sleep. `publish` wakes them."""
        ...

    def synced(self) -> bool:
        """Whether every healthy worker has acknowledged the newest version."""
        ...

    def forget(self) -> None:
        """Ignore whatever is being sampled."""
        ...


class Rewards(Protocol):
    """The reward workers as the loop sees them."""

    def submit(self, ticket: int, group: Sampled, votes_by: tuple[str, ...] = ()) -> None:
        """Have a group scored; given `votes_by`, with votes by the first of these rewards that scores its prompt."""
        ...

    def poll(self) -> list[tuple[int, tuple[RewardScore, ...] | ResponsesLost | None]]:
        """Scores by ticket. None: the worker died, the group is ours to submit again; ResponsesLost: its prompt is."""
        ...

    def forget(self) -> None: ...


class LearnerClient(Protocol):
    """The learner group as the loop sees it; every verb but `train` waits. Any may raise RanksLost."""

    def start(self) -> None:
        """Start every rank with the first policy, in place of any that lives."""
        ...

    def train(self, batch: TrainBatch) -> None:
        """Start training on a batch."""
        ...

    def poll(self) -> TrainResult | None: ...

    def publish(self, version: int) -> Sequence[object]:
        """Return handles of the weights, one a rank that has some, to be given to the rollout workers."""
        ...

    def offload(self) -> None:
        """Leave the GPUs; whatever is called next comes back to them first."""
        ...

    def reset_reference(self) -> None: ...

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None:
        """Restore a checkpoint, restarting dead ranks first."""
        ...

    def export(self, directory: Path) -> None:
        """Write the policy for others to use."""
        ...
