"""The ledger: which prompts are pending, issued, finished or trained, so that none is lost and none trained twice.

A **ticket** is one prompt in one epoch; tickets are numbered in the (seeded) order in which prompts are visited. A
batch is made of the first tickets in that order, never of the first to finish: short responses gain no advantage.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from framework.errors import DamagedState, UserError
from framework.files import text_digest
from framework.stored import Scored
from framework.types import Prompt

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
    scored: Scored


class Ledger:
    """State of every ticket. Pure bookkeeping: no Ray, no clock.

    `batch_size` P tickets make a batch. At most P * (k + 1) tickets beyond those that the published version was trained
    on are live at once, where k is `max_staleness`: a group is trained at most k versions after its sampling began.
    `once`: the prompts are visited a single time, in the order given. `late` prompts are visited beside the others from
    ticket `late_from` on, where the epochs begin anew over all of them.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        batch_size: int,
        max_staleness: int,
        seed: int,
        once: bool = False,
        late: Sequence[Prompt] = (),
        late_from: int = 0,
    ) -> None:
        if not prompts:
            raise UserError("prompts", 0, "at least one prompt is needed")
        self.prompts, self.batch_size, self.max_staleness, self.seed = prompts, batch_size, max_staleness, seed
        self.once = once
        self._late_from = late_from if late else None
        self._everything = (*prompts, *late) if late else prompts
        self.batches_trained = 0
        self.consumed: list[Consumed] = []
        self._next = 0  # first ticket that was never issued
        self._returned: list[int] = []  # heap: issued once, to be issued again
        self._issued: dict[int, int] = {}  # ticket -> policy version it was issued for
        self._finished: dict[int, Scored] = {}
        # What makes `batch_ready` cheap however many tickets are live; `_advance` keeps the three in step.
        self._open: list[int] = []  # heap: every ticket issued or returned, and some that were
        self._behind: list[int] = []  # heap: finished tickets with an open one before them
        self._front: deque[int] = deque()  # finished tickets without, in order
        self._no_signal: dict[int, Scored] = {}  # finished, waiting to be written off with the next batch
        self._orders: dict[int, list[int]] = {}

    def prompt(self, ticket: int) -> Prompt:
        """The prompt that a ticket stands for."""
        if self.once:
            return self.prompts[ticket]
        epoch, place, visited = self._visit(ticket)
        if epoch not in self._orders:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(visited))
            self._orders = {epoch: order.tolist(), **{e: o for e, o in self._orders.items() if e == epoch - 1}}
        return visited[self._orders[epoch][place]]

    def _visit(self, ticket: int) -> tuple[int, int, Sequence[Prompt]]:
        """The ticket's epoch, its place in that epoch's order, and the prompts that the epoch goes through."""
        if self._late_from is None or ticket < self._late_from:
            return (*divmod(ticket, len(self.prompts)), self.prompts)
        epochs, place = divmod(ticket - self._late_from, len(self._everything))
        return -(-self._late_from // len(self.prompts)) + epochs, place, self._everything

    def to_issue(self, version: int) -> int:
        """How many more tickets may be issued for the acknowledged policy `version`."""
        wanted = self.batch_size * (version + self.max_staleness + 1 - self.batches_trained) - self.live
        left = len(self._returned) + len(self.prompts) - self._next if self.once else wanted
        return max(0, min(wanted, left))

    def issue(self, version: int) -> int:
        """Mark the next ticket as issued for `version` and return it."""
        if self._returned:
            ticket = heappop(self._returned)
        else:
            ticket = self._next
            self._next += 1
            heappush(self._open, ticket)
        self._issued[ticket] = version
        return ticket

    def give_back(self, tickets: Iterable[int]) -> None:
        """Return issued tickets whose worker died; they are issued again before new ones."""
        for ticket in tickets:
            del self._issued[ticket]
            heappush(self._returned, ticket)

    def finish(self, ticket: int, scored: Scored, refill: bool) -> None:
        """Record a scored group. With `refill` the ticket leaves the batch and the next one takes its place."""
        del self._issued[ticket]
        (self._no_signal if refill else self._finished)[ticket] = scored
        if not refill:
            heappush(self._behind, ticket)
        self._advance()

    @property
    def live(self) -> int:
        """Tickets that are issued or finished, but not trained; those given back are about to be issued again."""
        return len(self._issued) + len(self._finished)

    def batch_ready(self) -> bool:
        """Whether the first P live tickets are all finished."""
        return len(self._front) >= self.batch_size

    def batch(self) -> list[FinishedTicket]:
        """The next batch, in ticket order. It stays in the ledger until `train` marks it."""
        assert self.batch_ready()
        return [FinishedTicket(ticket, self._finished[ticket]) for ticket in islice(self._front, self.batch_size)]

    @property
    def refilled(self) -> int:
        """Groups without signal that are not written off yet."""
        return len(self._no_signal)

    def discarded(self, batch: Sequence[FinishedTicket]) -> list[FinishedTicket]:
        """Groups without signal whose place in `batch` others have taken: `train` writes them off with it."""
        last = max(item.ticket for item in batch)
        return [FinishedTicket(ticket, scored) for ticket, scored in sorted(self._no_signal.items()) if ticket <= last]

    def scored(self) -> list[Scored]:
        """Groups that were scored and neither trained nor written off yet."""
        return [*self._finished.values(), *self._no_signal.values()]

    def train(self, batch: Sequence[FinishedTicket]) -> None:
        """Mark a batch as trained, and the groups that were refilled before its last ticket as used up."""
        discarded = self.discarded(batch)
        for item in batch:
            del self._finished[item.ticket]
            first = self._front.popleft()
            assert first == item.ticket, "batches are trained in the order of their tickets"
            self._consume(item.ticket, "trained")
        for item in discarded:
            del self._no_signal[item.ticket]
            self._consume(item.ticket, "no_signal")
        self.batches_trained += 1

    def save(self, file: Path) -> None:
        """Write the journal: a header line, then a line per consumed ticket. Live tickets are not kept: they rerun."""
        lines = [json.dumps(asdict(entry)) for entry in self.consumed]
        header: dict[str, object] = {"batches_trained": self.batches_trained, "prompts": len(self.prompts)}
        header |= {"seed": self.seed, "entries": len(lines)}
        header["digest"] = _digest(header, lines)
        file.write_text("\n".join([json.dumps(header), *lines]) + "\n")

    def load(self, file: Path) -> None:
        """Return to what `save` wrote; the rest is pending again.

        Raises DamagedState for a file that has changed, or whose entries are not those of its batches: a ticket lost or
        doubled would be trained twice. UserError for a foreign one.
        """
        try:
            first, *lines = file.read_text().removesuffix("\n").split("\n")
            header = json.loads(first)
            consumed = [Consumed(**json.loads(line)) for line in lines]
            batches_trained, prompts, seed = header["batches_trained"], header["prompts"], header["seed"]
            digest = header.pop("digest") if "entries" in header or len(header) > 3 else None  # early ledgers had none
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedState(str(file), str(error), "must be a ledger as the run saved it") from None
        if digest is not None and digest != (found := _digest(header, lines)):
            raise DamagedState(str(file), f"digest {found[:12]}", f"was saved with {digest[:12]}: damaged since")
        if (prompts, seed) != (len(self.prompts), self.seed):
            raise UserError(
                str(file), f"{prompts} prompts, seed {seed}", f"this run has {len(self.prompts)}, seed {self.seed}"
            )
        self._check_entries(file, batches_trained, consumed)
        self.batches_trained, self.consumed = batches_trained, consumed
        done = {entry.ticket for entry in consumed}
        self._next = max(done, default=-1) + 1
        self._returned = sorted(set(range(self._next)) - done)
        self._open, self._behind, self._front = list(self._returned), [], deque()
        self._issued, self._finished, self._no_signal = {}, {}, {}

    def _check_entries(self, file: Path, batches_trained: int, consumed: Sequence[Consumed]) -> None:
        """Raise DamagedState unless every batch trained its P tickets, none twice, each on its own prompt."""
        tickets = Counter(entry.ticket for entry in consumed)
        twice = [ticket for ticket, times in tickets.items() if times > 1]
        trained = Counter(entry.batch for entry in consumed if entry.outcome == "trained")
        wrong = [
            b for b in {*range(batches_trained), *trained} if trained[b] != self.batch_size * (b < batches_trained)
        ]
        foreign = [e for e in sorted(consumed, key=lambda e: e.ticket) if self.prompt(e.ticket).id != e.prompt_id]
        found = ""
        if twice:
            found = f"ticket {twice[0]} is there {tickets[twice[0]]} times"
        elif wrong:
            found = f"batch {min(wrong)} has {trained[min(wrong)]} trained entries, of {self.batch_size}"
        elif foreign:
            found = f"ticket {foreign[0].ticket} names prompt {foreign[0].prompt_id}"
        if found:
            raise DamagedState(str(file), found, f"must hold every ticket of {batches_trained} batches once")

    def _consume(self, ticket: int, outcome: Outcome) -> None:
        epoch, _, _ = self._visit(ticket)
        self.consumed.append(Consumed(ticket, epoch, self.prompt(ticket).id, self.batches_trained, outcome))

    def _advance(self) -> None:
        """Move finished tickets to the front that have no open ticket before them any more."""
        while self._open and (self._open[0] in self._finished or self._open[0] in self._no_signal):
            heappop(self._open)
        while self._behind and (not self._open or self._behind[0] < self._open[0]):
            self._front.append(heappop(self._behind))


def _digest(header: Mapping[str, object], lines: Sequence[str]) -> str:
    """Of everything in a ledger's file but this digest itself."""
    return text_digest("\n".join([json.dumps(header, sort_keys=True), *lines]))
