"""A pool of restartable Ray actors of one role: tagged calls, results as they come, and no tag lost in a restart."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.actors.causes import cause, is_death
from framework.actors.placing import Placing
from framework.actors.pulse import pulse_of
from framework.actors.waits import Watch
from framework.errors import RunFailed, UserError
from framework.graph.deadlines import Deadlines

TRUSTED_AFTER = 100  # calls that a worker must return before its restarts are forgotten


@dataclass(frozen=True)
class Done:
    """A call that returned."""

    worker: int
    tag: Hashable
    result: Any
    parts: tuple[Any, ...] = ()  # references to what else it returned


@dataclass(frozen=True)
class Gone:
    """A call that never began: what its arguments refer to is lost. The worker is as well as before."""

    worker: int
    tag: Hashable
    reason: str


@dataclass(frozen=True)
class Lost:
    """A call whose worker died before it returned; the caller owns the work again."""

    worker: int
    tag: Hashable


@dataclass(frozen=True)
class _Call:
    worker: int
    tag: Hashable
    number: int  # its key in the watch
    parts: tuple[Any, ...] = ()
    may_go: bool = False


def wait_for_any(calls: Sequence[Any], timeout_s: float = 0.05) -> None:
    """Return once one of these calls has returned, or failed, and after `timeout_s` at the latest, also without any."""
    import ray

    if calls:
        ray.wait(list(calls), num_returns=1, timeout=timeout_s, fetch_local=False)
    else:
        time.sleep(timeout_s)  # a restarting worker needs the core that spinning would take


class _SetUp:
    """Tag of the pool's own set-up call."""


class WorkerPool:
    """Actors created with `max_restarts=-1` that have `ping` and `apply`.

    RLlib's FaultTolerantActorManager keeps their health and finds the ones that Ray has restarted. The calls are ours:
    the manager forgets work when an actor dies. A new or restarted actor runs `set_up` before it counts as ready.

    The run ends when workers that have not proved themselves since were restarted more than `max_restarts` times: a
    crash that comes back, whichever workers it goes around, is told from one lost machine a day. An error that workers
    raise twice, alike, before they have returned anything since their start is the run's own: it ends it at once.

    A worker that hangs is killed and replaced as if it had died; `deadlines` says when. `least_s`: for a method, what
    its arguments allow it at least, in seconds. `asks`: what an actor books, for the message when there is no place.
    """

    def __init__(
        self,
        name: str,
        actors: Sequence[Any],
        set_up: Callable[[Any], Any] | None = None,
        max_restarts: int = 10,
        deadlines: Deadlines | None = None,
        least_s: Mapping[str, Callable[..., float]] | None = None,
        asks: Mapping[str, float] | None = None,
    ) -> None:
        from ray.rllib.utils.actor_manager import FaultTolerantActorManager

        self.name, self.max_restarts = name, max_restarts
        self._watch = Watch(f"{name} worker", deadlines or Deadlines())
        self._least = least_s or {}
        self._placing = Placing(self._watch.name, self._watch.table.place, asks or {})
        self._numbers = itertools.count()
        self._loads: Counter[int] = Counter()  # calls of the caller's that are out, by worker
        self._first_error: dict[int, str] = {}  # by worker: what its first work after a start raised
        self._set_up = set_up
        self._manager = FaultTolerantActorManager(list(actors))
        self._calls: dict[Any, _Call] = {}  # ObjectRef -> call
        self._ready: set[int] = set()
        self._restarts: Counter[int] = Counter()  # by worker; forgotten once it has returned TRUSTED_AFTER calls
        self._returned: Counter[int] = Counter()  # by worker, since its last restart
        self._last_probe = 0.0
        for worker in self._manager.actor_ids():
            self._placing.begin(worker, self._manager.actors()[worker])
            self._begin(worker)

    @property
    def size(self) -> int:
        """Number of actors, dead ones included."""
        return int(self._manager.num_actors())

    @property
    def restarts(self) -> int:
        """Restarts that count against `max_restarts`."""
        return self._restarts.total()

    def ready(self) -> list[int]:
        """Workers that are set up and healthy."""
        return sorted(self._ready)

    def load(self, worker: int) -> int:
        """Calls of the caller's that this worker has not returned yet."""
        return self._loads[worker]

    @property
    def outstanding(self) -> list[Any]:
        """References of the calls that `poll` has not returned yet, the pool's own among them."""
        return list(self._calls)

    def call(self, worker: int, method: str, *args: Any, tag: Hashable, returns: int = 1, may_go: bool = False) -> None:
        """Call a method; its outcome comes from `poll` as Done or Lost with this tag.

        `returns`: the method returns so many values, of which the first is the result; the others stay where it ran.
        `may_go`: arguments are references, and where what they refer to is lost, the outcome is Gone.
        """
        bound = getattr(self._manager.actors()[worker], method)
        parts: list[Any] = []
        if returns > 1:
            reference, *parts = bound.options(num_returns=returns).remote(*args)
        else:
            reference = bound.remote(*args)
        least = self._least[method](*args) if method in self._least else 0.0
        self._out(reference, worker, tag, method, least, tuple(parts), may_go)
        self._loads[worker] += 1

    def poll(self, timeout_s: float) -> list[Done | Lost | Gone]:
        """Return what has finished, waiting at most `timeout_s` for the first, also while no call is out.

        Raises the UserError that an actor raised; any other error in an actor restarts it. Raises RunFailed once
        `max_restarts` are used up, and for an actor that Ray will not restart.
        """
        import ray

        self._probe()
        outcomes = self._overdue()
        if timeout_s:
            wait_for_any(self.outstanding, timeout_s)
        references = self.outstanding
        if not references:
            return outcomes
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        for reference in ready:
            call = self._calls.pop(reference, None)
            if call is None:  # lost with its worker, which an earlier result of this round showed to be dead
                continue
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                if call.may_go and isinstance(error.cause, ray.exceptions.ObjectLostError):
                    outcomes.append(self._returned_nothing(call, error))
                else:
                    outcomes += self._lose(call, error, kill=True)
            except ray.exceptions.RayError as error:
                outcomes += self._lose(call, error, kill=False)
            else:
                self._watch.end(call.number)
                if isinstance(call.tag, _SetUp):
                    self._ready.add(call.worker)
                else:
                    self._loads[call.worker] -= 1
                    self._count(call.worker)
                    outcomes.append(Done(call.worker, call.tag, result, call.parts))
        return [outcome for outcome in outcomes if not isinstance(outcome.tag, _SetUp)]

    def shutdown(self) -> None:
        """Kill the actors."""
        import ray

        for actor in self._manager.actors().values():
            ray.kill(actor, no_restart=True)
        self._calls, self._ready, self._loads = {}, set(), Counter()

    def _begin(self, worker: int) -> None:
        if self._set_up is None:
            self._ready.add(worker)
        else:
            self._out(self._set_up(self._manager.actors()[worker]), worker, _SetUp(), "start")

    def _out(
        self,
        reference: Any,
        worker: int,
        tag: Hashable,
        verb: str,
        least: float = 0.0,
        parts: tuple[Any, ...] = (),
        may_go: bool = False,
    ) -> None:
        self._calls[reference] = _Call(worker, tag, next(self._numbers), parts, may_go)
        self._watch.begin(self._calls[reference].number, worker, verb, least)

    def _returned_nothing(self, call: _Call, error: Exception) -> Gone:
        self._watch.end(call.number)
        self._loads[call.worker] -= 1
        return Gone(call.worker, call.tag, cause(error))

    def _overdue(self) -> list[Done | Lost | Gone]:
        """Kill workers that are waited for too long: their calls are lost. Raises RunFailed where none has a place."""
        for worker in self._placing.placed():  # until then nobody can have kept us waiting
            self._watch.restart(worker)
        if not self._ready:
            self._placing.check()
        outcomes: list[Done | Lost | Gone] = []
        for late in self._watch.check(lambda worker: pulse_of(self._manager.actors()[worker]._actor_id.hex())):
            if late.worker in self._placing.waiting:
                continue
            call = next((call for call in self._calls.values() if call.number == late.key), None)
            if call is not None:
                self._calls = {r: c for r, c in self._calls.items() if c is not call}
                outcomes += self._lose(call, TimeoutError(late.reason), kill=True)
        return outcomes

    def _count(self, worker: int) -> None:
        self._returned[worker] += 1
        self._first_error.pop(worker, None)
        if self._returned[worker] == TRUSTED_AFTER:
            del self._restarts[worker]

    def _lose(self, failed: _Call, error: Exception, kill: bool) -> list[Lost]:
        """Take a dead worker out; all its calls are lost."""
        import ray

        worker, text = failed.worker, cause(error)
        if not is_death(error) and not self._returned[worker]:
            if text in self._first_error.values():
                raise RunFailed(f"{self.name} worker {worker} fails at its first work, as one did before: {text}")
            self._first_error[worker] = text
        self._restarts[worker] += 1
        self._returned[worker] = 0
        self._loads[worker] = 0
        self._watch.forget(worker)
        if self.restarts > self.max_restarts:
            raise RunFailed(f"{self.name} worker {worker} failed; {self.max_restarts} restarts used up: {text}")
        print(f"{self.name} worker {worker} lost ({text}); restarting it", flush=True)
        if kill:
            ray.kill(self._manager.actors()[worker], no_restart=False)
        self._placing.begin(worker, self._manager.actors()[worker])
        self._manager.set_actor_state(worker, healthy=False)
        self._last_probe = time.monotonic()  # an actor being killed may still answer a ping
        self._ready.discard(worker)
        lost = [failed, *(call for call in self._calls.values() if call.worker == worker)]
        self._calls = {r: c for r, c in self._calls.items() if c.worker != worker}
        return [Lost(call.worker, call.tag) for call in lost]

    def _probe(self) -> None:
        """Look, at most once a second, for unhealthy actors that Ray has restarted, or given up."""
        import ray

        if self._manager.num_healthy_actors() == self.size or time.monotonic() - self._last_probe < 1.0:
            return
        self._last_probe = time.monotonic()
        unhealthy = [worker for worker in self._manager.actor_ids() if not self._manager.is_actor_healthy(worker)]
        among = {"remote_actor_ids": unhealthy, "healthy_only": False}
        for ping in self._manager.foreach_actor("ping", **among, timeout_seconds=0.5, mark_healthy=True):
            if ping.ok:
                self._begin(ping.actor_id)
            elif isinstance(error := ping.get(), ray.exceptions.ActorDiedError):  # a restarting one is "unavailable"
                raise RunFailed(f"{self.name} worker {ping.actor_id} cannot be started: {cause(error)}") from error
