"""Actors that wait for a place in the cluster: who they are, what they ask for, and what there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from framework.errors import RunFailed, UserError

LOOK_EVERY_S = 1.0
PLACED = ("ALIVE", "DEAD")  # a dead one is not waited for either: its call says why it died


@dataclass
class Placing:
    """The actors of one role that Ray has not placed yet."""

    name: str  # of a worker, without its number
    limit_s: float
    asks: Mapping[str, float]  # what each books
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    waiting: dict[int, tuple[Any, float]] = field(default_factory=dict)  # worker -> actor, since when
    _looked: float = 0.0
    _said: bool = False

    def begin(self, worker: int, actor: Any) -> None:
        """The actor has been asked for, or is being restarted."""
        self.waiting[worker] = actor, self.clock()

    def placed(self) -> list[int]:
        """Those that have found a place since the last call; looks once a second at most."""
        if not self.waiting or self.clock() - self._looked < LOOK_EVERY_S:
            return []
        self._looked = self.clock()
        found = [worker for worker, (actor, _) in self.waiting.items() if state_of(actor) in PLACED]
        for worker in found:
            del self.waiting[worker]
        self._said = self._said and bool(self.waiting)
        return found

    def check(self) -> None:
        """Say after a tenth of the limit what is missing; raises RunFailed after the whole of it."""
        if not self.waiting:
            return
        worker, (_, since) = min(self.waiting.items(), key=lambda item: item[1][1])
        waited = self.clock() - since
        if waited > self.limit_s:
            raise RunFailed(f"{self.name} {worker} found no place for {waited:.0f} s: {missing(self.asks)}")
        if waited > self.limit_s / 10 and not self._said:
            self._said = True
            self.say(f"waiting for a place for {self.name} {worker} for {waited:.0f} s: {missing(self.asks)}")


def state_of(actor: Any) -> str:
    """Ray's state of an actor, e.g. PENDING_CREATION, ALIVE; an empty string if Ray does not know it."""
    from ray._private import state

    return str(state.actors(actor._actor_id.hex()).get("State", ""))


def check_room(name: str, workers: int, asks: Mapping[str, float]) -> None:
    """Raise UserError, by name, if the cluster has no place for so many workers, however long one waits."""
    import ray

    for resource, each in asks.items():
        has = ray.cluster_resources().get(resource, 0)
        if workers * each > has:
            allowed = f"the Ray cluster has {has:g} {resource}s: fewer workers, or less for each (cluster.learner_cpus)"
            raise UserError(f"{resource}s of {workers} {name}", f"{workers * each:g}", allowed)


def room(asks: Mapping[str, float]) -> int:
    """How many more workers that each ask for this would find a place now, over all nodes."""
    from ray._private.state import available_resources_per_node

    wanted = {name: amount for name, amount in asks.items() if amount}
    free = available_resources_per_node().values()
    return sum(min((int(node.get(name, 0) / amount) for name, amount in wanted.items()), default=0) for node in free)


def missing(asks: Mapping[str, float]) -> str:
    """What is asked for, what the cluster has, and what of it is free."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    asked = {name: amount for name, amount in asks.items() if amount} or {"CPU": 0.0}
    return "; ".join(
        f"it asks for {amount:g} {name}, the cluster has {total.get(name, 0):g}, {free.get(name, 0):g} of them free"
        for name, amount in asked.items()
    )
