"""Half of the loop: training from saved groups without a sampler, and sampling without a learner."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from framework.data.rollouts import RolloutHeader, SavedGroup, begin_rollouts, write_batch
from framework.errors import ResponsesLost
from framework.roles.ledger import FinishedTicket
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import TrainResult
from framework.stored import Sampled
from framework.types import Prompt, RewardScore, SamplingParams


@dataclass
class RecordedRollouts:
    """`rl_clients.Rollouts` that answers ticket n with the n-th saved group, at once."""

    groups: Sequence[SavedGroup]
    _held: list[int] = field(default_factory=list, init=False)

    def free_slots(self) -> int:
        """As many as there are groups."""
        return len(self.groups) - len(self._held)

    def submit(self, ticket: int, prompt: Prompt, params: SamplingParams) -> None:
        """Take the ticket; how its group was sampled is past."""
        self._held.append(ticket)

    def poll(self) -> list[tuple[int, Sampled | None]]:
        """Return the groups of all tickets taken."""
        held, self._held = self._held, []
        return [(ticket, self.groups[ticket].scored.group) for ticket in held]

    def publish(self, version: int, weights: Sequence[object]) -> None:
        """Nobody needs them."""

    def sleep(self) -> bool:
        """Nobody is awake."""
        return True

    def synced(self) -> bool:
        """There is nobody to wait for."""
        return True

    def forget(self) -> None:
        """Drop what was taken."""
        self._held = []


@dataclass
class RecordedRewards:
    """`rl_clients.Rewards` that gives ticket n the rewards of the n-th saved group."""

    groups: Sequence[SavedGroup]
    _held: list[int] = field(default_factory=list, init=False)

    def submit(self, ticket: int, group: Sampled, votes_by: tuple[str, ...] = ()) -> None:
        """Take the ticket: nobody votes on what is past."""
        self._held.append(ticket)

    def poll(self) -> list[tuple[int, tuple[RewardScore, ...] | ResponsesLost | None]]:
        """Return the rewards of all tickets taken."""
        held, self._held = self._held, []
        return [(ticket, self.groups[ticket].scored.scores) for ticket in held]

    def forget(self) -> None:
        """Drop what was taken."""
        self._held = []


@dataclass
class FixedPolicy:
    """`rl_clients.LearnerClient` that learns nothing: the samplers go on with the weights that they started with."""

    base: Path  # Hugging Face directory
    _batch: TrainBatch | None = field(default=None, init=False)

    @property
    def outstanding(self) -> list[object]:
        """Nothing is ever waited for."""
        return []

    def start(self) -> None:
        """Nothing is to be started."""

    def train(self, batch: TrainBatch) -> None:
        """Take the batch."""
        self._batch = batch

    def poll(self) -> TrainResult | None:
        """Return that no step was taken."""
        batch, self._batch = self._batch, None
        return None if batch is None else TrainResult((), None, 0.0, 0)

    def publish(self, version: int) -> Sequence[object]:
        """There are no new weights."""
        return ()

    def offload(self) -> None:
        """Nothing is on a GPU."""

    def reset_reference(self) -> None:
        """There is none."""

    def save(self, directory: Path) -> None:
        """The ledger beside it says it all."""

    def load(self, directory: Path) -> None:
        """Nothing was saved."""

    def export(self, directory: Path) -> None:
        """The policy is still the base: hard links to its files, copies on another file system."""
        directory.mkdir(parents=True, exist_ok=True)
        for file in self.base.iterdir():
            target = directory / file.name
            if file.is_file() and file.name != "manifest.json" and not target.exists():
                with suppress(OSError):
                    os.link(file.resolve(), target)
                    continue
                shutil.copyfile(file, target)

    def shutdown(self) -> None:
        """Nothing runs."""


@dataclass(frozen=True)
class RolloutSaver:
    """Writes the groups of every batch before it is trained on, those without signal that others replaced too."""

    directory: Path
    header: RolloutHeader

    def begin(self, batches: int | None = None) -> None:
        """Go on after `batches`, once they are known; raises UserError if the directory is another run's, or unfit."""
        begin_rollouts(self.directory, self.header, batches)

    def write(self, batch: int, groups: Sequence[FinishedTicket]) -> None:
        """Write the groups of one batch, each fetched when its turn comes; raises ResponsesLost."""
        ordered = sorted(groups, key=lambda item: item.ticket)
        write_batch(self.directory, batch, (SavedGroup(item.ticket, item.scored.load()) for item in ordered))
