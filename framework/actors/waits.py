"""Waits that are under way, by worker: whom a role waits for, since when, and who has to be replaced.

Pure bookkeeping over an injected clock; `framework.graph.deadlines` holds the times.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from framework.graph.deadlines import RECENT, Deadlines

CHECK_EVERY_S = 0.5
ABSENT_S = 10.0  # between two checks: then the driver was busy or stopped itself, and nobody is to blame for it
PULSE_AFTER_S = 2.0  # a wait this long is worth asking for the worker's pulse


@dataclass(frozen=True)
class Pulse:
    """What a worker's process says of itself while its calls are under way."""

    beats: int
    turns: int = -1  # what its work has come to, e.g. engine steps; -1: it does not count


@dataclass(frozen=True)
class Overdue:
    """A worker to be replaced; `reason` reads after its name."""

    worker: int
    key: Hashable
    reason: str


@dataclass
class _Wait:
    worker: int
    verb: str
    since: float
    least: float


@dataclass
class _Sign:
    pulse: Pulse
    beat_at: float
    turn_at: float


@dataclass
class Watch:
    """The waits of one role. Times are seconds of `clock`, less what the watcher itself was away."""

    name: str  # of a worker, without its number: "rollout worker"
    table: Deadlines
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    _waits: dict[Hashable, _Wait] = field(default_factory=dict)
    _times: dict[str, deque[float]] = field(default_factory=dict)
    _signs: dict[int, _Sign] = field(default_factory=dict)
    _noticed: set[tuple[int, str]] = field(default_factory=set)
    _checked: float | None = None
    _away: float = 0.0

    def begin(self, key: Hashable, worker: int, verb: str, least: float = 0.0) -> None:
        """A call goes out; its deadline is no sooner than `least` seconds."""
        self._waits[key] = _Wait(worker, verb, self._now(), least)

    def end(self, key: Hashable) -> float:
        """It has returned; how long it took counts for the role's next ones."""
        wait = self._waits.pop(key)
        took = self._now() - wait.since
        self._times.setdefault(wait.verb, deque(maxlen=RECENT)).append(took)
        self._noticed.discard((wait.worker, wait.verb))
        return took

    def drop(self, key: Hashable) -> None:
        """It will not return, and that is no wait's fault."""
        wait = self._waits.pop(key, None)
        if wait is not None:
            self._noticed.discard((wait.worker, wait.verb))

    def restart(self, worker: int) -> None:
        """Count the worker's waits from now on."""
        for wait in self._waits.values():
            if wait.worker == worker:
                wait.since = self._now()

    def forget(self, worker: int) -> None:
        """The worker has died: none of its calls is waited for."""
        self._waits = {key: wait for key, wait in self._waits.items() if wait.worker != worker}
        self._noticed = {item for item in self._noticed if item[0] != worker}
        self._signs.pop(worker, None)

    def longest(self, verb: str) -> float | None:
        """The longest of the role's recent times at `verb`, None before the first."""
        return max(self._times[verb]) if self._times.get(verb) else None

    def waited(self) -> float:
        """How long the oldest wait has lasted, 0 if there is none."""
        return max((self._now() - wait.since for wait in self._waits.values()), default=0.0)

    def check(self, pulse_of: Callable[[int], Pulse | None]) -> list[Overdue]:
        """Say whom we wait for, and return the workers that are overdue, each once; looks twice a second at most.

        `pulse_of` is asked for the pulse of workers that are waited for; None: unknown, so it is not judged by it.
        """
        raw = self.clock()
        if self._checked is not None and raw - self._checked < CHECK_EVERY_S:
            return []
        if self._checked is not None and raw - self._checked > ABSENT_S:
            self._away += raw - self._checked
        self._checked = raw
        now = self._now()
        oldest: dict[tuple[int, str], tuple[Hashable, _Wait]] = {}
        for key, wait in self._waits.items():
            held = oldest.get((wait.worker, wait.verb))
            if held is None or wait.since < held[1].since:
                oldest[wait.worker, wait.verb] = key, wait
        found: dict[int, Overdue] = {}
        for key, wait in oldest.values():
            if now - wait.since >= min(PULSE_AFTER_S, self.table.silent / 4):
                self._see(wait.worker, pulse_of(wait.worker), now)
            reason = self._judge(wait, now)
            if reason:
                found.setdefault(wait.worker, Overdue(wait.worker, key, reason))
        return list(found.values())

    def _see(self, worker: int, pulse: Pulse | None, now: float) -> None:
        if pulse is None:
            return
        sign = self._signs.get(worker)
        if sign is None:
            self._signs[worker] = _Sign(pulse, now, now)
            return
        if pulse.beats != sign.pulse.beats:
            sign.beat_at = now
        if pulse.turns != sign.pulse.turns:
            sign.turn_at = now
        sign.pulse = pulse

    def _judge(self, wait: _Wait, now: float) -> str:
        """Why the wait is over, or an empty string."""
        sign, since = self._signs.get(wait.worker), wait.since
        limit = self.table.limit(wait.verb, self.longest(wait.verb), wait.least)
        if sign is not None and sign.pulse.turns >= 0:
            limit = max(limit, self.table.first)  # it may work for as long as it gets on
        if sign is not None:
            silent, stuck = now - max(since, sign.beat_at), now - max(since, sign.turn_at)
            if silent > self.table.silent:
                return f"gave no sign of life for {silent:.0f} s ({wait.verb})"
            if sign.pulse.turns >= 0 and stuck > max(self.table.floor(wait.verb), wait.least):
                return f"did nothing for {stuck:.0f} s ({wait.verb})"
            since = max(since, sign.turn_at) if sign.pulse.turns >= 0 else since
        if now - wait.since > limit:
            return f"did not answer for {now - wait.since:.0f} s ({wait.verb})"
        counts = sign is not None and sign.pulse.turns >= 0
        shown = max(self.table.floor(wait.verb), wait.least) if counts else limit
        if now - since > self.table.notice(shown) and (wait.worker, wait.verb) not in self._noticed:
            self._noticed.add((wait.worker, wait.verb))
            asked = time.strftime("%H:%M:%S", time.localtime(time.time() - (now - since)))
            self.say(
                f"waiting for {self.name} {wait.worker} ({wait.verb}) since {asked}, {now - since:.0f} s; "
                f"it is replaced after {shown:.0f} s"
            )
        return ""

    def _now(self) -> float:
        return self.clock() - self._away
