"""The ledger: which prompts are pending, issued, finished or trained, so that none is lost and none trained twice.

A **ticket** is one prompt in one epoch; tickets are numbered in the (seeded) order in which prompts are visited. A
batch is made of the first tickets in that order, never of the first to finish: short responses gain no advantage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from framework.errors import UserError
from framework.types import Prompt, ScoredGroup

Outcome = Literal["trained", "no_signal"]


@dataclass(frozen=True)
class Consumed:
    """A ticket's entry in the journal: the batch that used it up and how."""

    ticket: int
    epoch: int
    prompt_id: str
    batch: int
    outcome: Outcome


@dataclass(frozen=True)
class FinishedTicket:
    """A ticket whose group is sampled and scored."""

    ticket: int
    scored: ScoredGroup


class Ledger:
    """State of every ticket. Pure bookkeeping: no Ray, no clock.

    `batch_size` P tickets make a batch. At most P * (k + 1) tickets beyond those that the published version was trained
    on are live at once, where k is `max_staleness`: a group is trained at most k versions after its sampling began.
    """

    def __init__(self, prompts: Sequence[Prompt], batch_size: int, max_staleness: int, seed: int) -> None:
        if not prompts:
            raise UserError("prompts", 0, "at least one prompt is needed")
        self.prompts, self.batch_size, self.max_staleness, self.seed = prompts, batch_size, max_staleness, seed
        self.batches_trained = 0
        self.consumed: list[Consumed] = []
        self._next = 0  # first ticket that was never issued
        self._returned: set[int] = set()  # issued once, to be issued again
        self._issued: dict[int, int] = {}  # ticket -> policy version it was issued for
        self._finished: dict[int, ScoredGroup] = {}
        self._no_signal: dict[int, ScoredGroup] = {}  # finished, waiting to be written off with the next batch
        self._orders: dict[int, list[int]] = {}

    def prompt(self, ticket: int) -> Prompt:
        """The prompt that a ticket stands for."""
        epoch, place = divmod(ticket, len(self.prompts))
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.prompts))
            self._orders = {epoch: order.tolist(), **{e: o for e, o in self._orders.items() if e == epoch - 1}}
        return self.prompts[self._orders[epoch][place]]

    def to_issue(self, version: int) -> int:
        """How many more tickets may be issued for the acknowledged policy `version`."""
        return max(0, self.batch_size * (version + self.max_staleness + 1 - self.batches_trained) - self.live)

    def issue(self, version: int) -> int:
        """Mark the next ticket as issued for `version` and return it."""
        if self._returned:
            ticket = min(self._returned)
            self._returned.remove(ticket)
        else:
            ticket = self._next
            self._next += 1
        self._issued[ticket] = version
        return ticket

    def give_back(self, tickets: Iterable[int]) -> None:
        """Return issued tickets whose worker died; they are issued again before new ones."""
        for ticket in tickets:
            del self._issued[ticket]
            self._returned.add(ticket)

    def finish(self, ticket: int, scored: ScoredGroup, refill: bool) -> None:
        """Record a scored group. With `refill` the ticket leaves the batch and the next one takes its place."""
        del self._issued[ticket]
        (self._no_signal if refill else self._finished)[ticket] = scored

    @property
    def live(self) -> int:
        """Tickets that are issued or finished, but not trained; those given back are about to be issued again."""
        return len(self._issued) + len(self._finished)

    def batch_ready(self) -> bool:
        """Whether the first P live tickets are all finished."""
        return len(self._first_live()) == self.batch_size and all(t in self._finished for t in self._first_live())

    def batch(self) -> list[FinishedTicket]:
        """The next batch, in ticket order. It stays in the ledger until `train` marks it."""
        assert self.batch_ready()
        return [FinishedTicket(ticket, self._finished[ticket]) for ticket in self._first_live()]

    @property
    def refilled(self) -> int:
        """Groups without signal that are not written off yet."""
        return len(self._no_signal)

    def discarded(self, batch: Sequence[FinishedTicket]) -> list[FinishedTicket]:
        """Groups without signal whose place in `batch` others have taken: `train` writes them off with it."""
        last = max(item.ticket for item in batch)
        return [FinishedTicket(ticket, scored) for ticket, scored in sorted(self._no_signal.items()) if ticket <= last]

    def scored(self) -> list[ScoredGroup]:
        """Groups that were scored and neither trained nor written off yet."""
        return [*self._finished.values(), *self._no_signal.values()]

    def train(self, batch: Sequence[FinishedTicket]) -> None:
        """Mark a batch as trained, and the groups that were refilled before its last ticket as used up."""
        discarded = self.discarded(batch)
        for item in batch:
            del self._finished[item.ticket]
            self._consume(item.ticket, "trained")
        for item in discarded:
            del self._no_signal[item.ticket]
            self._consume(item.ticket, "no_signal")
        self.batches_trained += 1

    def save(self, file: Path) -> None:
        """Write the journal: a header line, then a line per consumed ticket. Live tickets are not kept: they rerun."""
        header = {"batches_trained": self.batches_trained, "prompts": len(self.prompts), "seed": self.seed}
        lines = [json.dumps(header), *(json.dumps(asdict(entry)) for entry in self.consumed)]
        file.write_text("\n".join(lines) + "\n")

    def load(self, file: Path) -> None:
        """Return to what `save` wrote; the rest is pending again. Raises UserError on a damaged or foreign file."""
        try:
            header, *lines = [json.loads(line) for line in file.read_text().splitlines()]
            consumed = [Consumed(**line) for line in lines]
            batches_trained, prompts, seed = header["batches_trained"], header["prompts"], header["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(str(file), str(error), "must be a ledger as the run saved it") from None
        if (prompts, seed) != (len(self.prompts), self.seed):
            raise UserError(
                str(file), f"{prompts} prompts, seed {seed}", f"this run has {len(self.prompts)}, seed {self.seed}"
            )
        self.batches_trained, self.consumed = batches_trained, consumed
        done = {entry.ticket for entry in consumed}
        self._next = max(done, default=-1) + 1
        self._returned = set(range(self._next)) - done
        self._issued, self._finished, self._no_signal = {}, {}, {}

    def _consume(self, ticket: int, outcome: Outcome) -> None:
        epoch = ticket // len(self.prompts)
        self.consumed.append(Consumed(ticket, epoch, self.prompt(ticket).id, self.batches_trained, outcome))

    def _first_live(self) -> list[int]:
        return sorted([*self._issued, *self._finished, *self._returned])[: self.batch_size]
