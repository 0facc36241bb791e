"""Looks after the ranks of a Ray Train run by their pulses: one that hangs is killed, and Ray Train sees it die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from framework.actors.pulse import pulse_of, whereabouts
from framework.actors.waits import Pulse, Watch
from framework.graph.deadlines import Deadlines

VERB = "step"


def pulse_name(run: str, rank: int) -> str:
    """Under which a rank of a run beats; it counts its steps, validations and checkpoints."""
    return f"{run}:{rank}"


@dataclass
class RankWatch:
    """The ranks of one run. A rank is waited for from its first beat on: until its next step, over and over."""

    run: str
    ranks: int
    table: Deadlines
    read: Callable[[str], Pulse | None] = pulse_of
    kill: Callable[[str], None] = lambda name: kill_where(name)
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    _turns: dict[int, int] = field(default_factory=dict)  # last seen
    _waited: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._watch = Watch("training worker", self.table, say=self.say)

    def begin(self) -> None:
        """The ranks are (re)started: those that beat now are gone."""
        for rank in self._waited:
            self._watch.forget(rank)
        self._waited = set()
        self._turns = {rank: pulse.turns for rank in range(self.ranks) if (pulse := self._pulse(rank)) is not None}

    def check(self) -> None:
        """Kill the rank that the others wait for: the one without a sign of life, else the one furthest behind."""
        for rank in range(self.ranks):
            pulse = self._pulse(rank)
            if pulse is None or self._turns.get(rank) == pulse.turns:
                continue
            if rank in self._waited:
                self._watch.end(rank)
            self._turns[rank] = pulse.turns
            self._waited.add(rank)
            self._watch.begin(rank, rank, VERB)
        late = self._watch.check(lambda rank: None if (found := self._pulse(rank)) is None else Pulse(found.beats))
        if late:
            silent = [item for item in late if "sign of life" in item.reason]
            worst = min(silent or late, key=lambda item: self._turns[item.worker])
            self.say(f"training worker {worst.worker} lost ({worst.reason}); killing it")
            self.kill(pulse_name(self.run, worst.worker))
            self.begin()

    def _pulse(self, rank: int) -> Pulse | None:
        return self.read(pulse_name(self.run, rank))


def kill_where(name: str) -> None:
    """Kill the process that beats under a name, on whatever node it is."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = whereabouts(name)
    if place is None:
        return
    node, pid = place
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(pid)


def _kill(pid: int) -> None:
    title = Path(f"/proc/{pid}/cmdline")
    if title.is_file() and title.read_bytes().startswith(b"ray::"):  # never a stranger with a reused number
        os.kill(pid, signal.SIGKILL)
