"""Ranks that work together, and the driver's handle on all of them: start, call all alike, name the dead, start again.

A collective needs every rank, so ranks live and die together: when one is lost the group kills the others, says which
one it was, and is started again from a checkpoint.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from framework.actors.awaiting import awaiting
from framework.actors.causes import cause, is_collective, is_death, port_taken
from framework.actors.placing import Placing
from framework.actors.pulse import beat, pulse_of
from framework.actors.waits import Overdue, Watch
from framework.errors import FrameworkError, ResponsesLost, RunFailed, Stopped
from framework.graph.deadlines import Deadlines
from framework.graph.stop import never_stop

_PING_EVERY_S = 1.0
_DEATH_NOTICE_S = 10.0  # Ray tells of a dead actor a moment after its peers' collectives have failed
_STOPPED_S = 4.0  # a rank whose pulse stands so long, while another's collective fails, is the one to blame
_PORTS = 3  # tried: another process may take one between the choice and its use


class RanksLost(Exception):
    """A rank died; the group must be started again from a checkpoint."""


class PortTaken(RanksLost):
    """The port chosen for the group was taken before rank 0 could bind it."""


class Rank:
    """Base of the ranks' actors: plain classes whose `start` joins, wrapped by the group. Calls are collective."""

    def __init__(self) -> None:
        beat()

    def address(self) -> tuple[str, int]:
        """Host and a free port on it; asked of rank 0 before the group joins."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def join(self, rank: int, world: int, host: str, port: int) -> None:
        """Tell this process its place, as torch.distributed reads it."""
        own = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "MASTER_ADDR": host, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in own.items()})


class RankGroup:
    """The driver's handle on all ranks. A lost rank surfaces as RanksLost, by name.

    `worker` is the class of a rank, whose `start` gets rank, world, host, port and `arguments`. Every wait has a
    deadline; a rank that passes it, or whose process has stopped, is lost as one that died. Once the run is to stop,
    `Stopped` takes the place of RanksLost, and comes `deadlines.stop` after the request at the latest (a checkpoint may
    take twice its usual time).
    """

    def __init__(
        self,
        name: str,
        worker: type,
        options: Sequence[Mapping[str, Any]],
        arguments: tuple[Any, ...] = (),
        *,
        deadlines: Deadlines | None = None,
        should_stop: Callable[[], bool] = never_stop,
        allow_s: Callable[[float], None] = lambda seconds: None,
        least_s: Mapping[str, float] | None = None,
    ) -> None:
        """`start` or `load` starts the ranks. `options`: Ray's for each rank; `name`: of a rank, "learner rank".

        `least_s`: seconds that a method may take at any rate.
        """
        self.name, self.ranks = name, len(options)
        self._worker, self._options, self._arguments = worker, list(options), arguments
        self._workers: list[Any] = []
        self._begun = ""  # the verb of the call that `begin` has sent out
        self._calls: dict[int, Any] = {}  # rank -> reference still out
        self._results: dict[int, Any] = {}
        self._pings: dict[int, Any] = {}  # rank -> reference still out
        self._pinged = 0.0
        self._watch = Watch(name, deadlines or Deadlines())
        asks = {"CPU": self._options[0].get("num_cpus", 0), "GPU": self._options[0].get("num_gpus", 0)}
        self._placing = Placing(self._watch.name, self._watch.table.place, asks)
        self._should_stop, self._allow, self._least = should_stop, allow_s, least_s or {}
        self._asked_to_stop: float | None = None

    def start(self) -> None:
        """Start all ranks, in place of any that live. Raises UserError or RanksLost."""
        for attempt in range(1, _PORTS + 1):
            try:
                with awaiting(f"{self.name}s to start"):
                    return self._start()
            except PortTaken as error:
                if attempt == _PORTS:
                    raise
                print(f"{error}; trying another one", flush=True)

    def _start(self) -> None:
        import ray

        self.shutdown()
        worker = ray.remote(self._worker)
        self._workers = [worker.options(max_restarts=0, **options).remote() for options in self._options]
        for rank, actor in enumerate(self._workers):
            self._placing.begin(rank, actor)
        ready = self._gather("start", {rank: actor.address.remote() for rank, actor in enumerate(self._workers)})
        place = self.ranks, *ready[0]
        calls = {r: actor.start.remote(r, *place, *self._arguments) for r, actor in enumerate(self._workers)}
        self._gather("start", calls)

    def shutdown(self) -> None:
        """Kill every rank."""
        import ray

        for rank, worker in enumerate(self._workers):
            ray.kill(worker, no_restart=True)
            self._watch.forget(rank)
        self._workers, self._calls, self._results, self._pings = [], {}, {}, {}
        self._placing.waiting.clear()

    def call(self, method: str, *args: Any) -> Any:
        """Call all ranks with the same arguments; return rank 0's result."""
        self._require_workers()
        return self._gather(method, {r: getattr(w, method).remote(*args) for r, w in enumerate(self._workers)})[0]

    def begin(self, method: str, *args: Any, own: Callable[[int], tuple[Any, ...]] = lambda rank: ()) -> None:
        """Start a call of all ranks, each with its own arguments behind the others'; `poll` returns rank 0's result."""
        self._require_workers()
        self._begun, self._results = method, {}
        self._calls = {
            rank: getattr(worker, method).remote(*args, *own(rank)) for rank, worker in enumerate(self._workers)
        }
        for rank in self._calls:
            self._watch.begin((method, rank), rank, method, self._least.get(method, 0.0))

    def poll(self) -> Any:
        """Rank 0's result of `begin` once all ranks are done, else None. Raises RanksLost, or what a rank raised."""
        if not self._calls and not self._results:
            self._ping()
            return None
        self._require_workers()
        self._results |= self._take_ready(self._begun, self._calls)
        if self._calls:
            self._check(self._begun, self._calls)
            return None
        result, self._results = self._results[0], {}
        return result

    @property
    def outstanding(self) -> list[Any]:
        """References of the ranks that have not returned what was begun."""
        return list(self._calls.values())

    def save(self, directory: Path) -> None:
        """Write engine state into `directory`, which all ranks can reach."""
        known = self._watch.longest("save")
        self._allow(self._grace("save"))
        with awaiting("a checkpoint to be written"):
            self.call("save", directory)
        if known is None:
            print(
                f"a checkpoint takes {self._watch.longest('save'):.1f} s; a stop waits up to "
                f"{self._watch.table.stop:g} s (cluster.deadlines.stop) for what is being trained, then for that",
                flush=True,
            )

    def load(self, directory: Path) -> None:
        """Restore engine state; ranks that are gone are started first."""
        if not self._workers:
            self.start()
        with awaiting("a checkpoint to be read"):
            self.call("load", directory)

    def export(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint."""
        with awaiting("the model to be exported"):
            self.call("export", directory)

    def _ping(self) -> None:
        """Notice a death between two calls as well: with its node, weights that no rollout worker has yet are gone."""
        self._take_ready("ping", self._pings)
        if not self._pings and time.monotonic() - self._pinged > _PING_EVERY_S:
            self._pinged = time.monotonic()
            self._pings = {rank: worker.__ray_ready__.remote() for rank, worker in enumerate(self._workers)}

    def _take_ready(self, verb: str, calls: dict[int, Any]) -> dict[int, Any]:
        """Take the calls that have returned out of `calls`; their results."""
        import ray

        references = list(calls.values())
        ready = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        done = {rank: calls.pop(rank) for rank, ref in list(calls.items()) if ref in ready}
        return self._collect(verb, done, calls)

    def _require_workers(self) -> None:
        if not self._workers:
            raise self._lost("no rank is running")

    def _gather(self, verb: str, calls: dict[int, Any]) -> dict[int, Any]:
        """Wait for all ranks' calls; the first failure decides, not the slowest rank."""
        import ray

        for rank in calls:
            self._watch.begin((verb, rank), rank, verb, self._least.get(verb, 0.0))
        results: dict[int, Any] = {}
        waiting = dict(calls)
        while waiting:
            ready, _ = ray.wait(list(waiting.values()), num_returns=1, timeout=0.5)
            done = {rank: waiting.pop(rank) for rank, ref in list(waiting.items()) if ref in ready}
            results |= self._collect(verb, done, waiting)
            if waiting:
                self._check(verb, waiting)
        return results

    def _collect(self, verb: str, done: dict[int, Any], waiting: dict[int, Any]) -> dict[int, Any]:
        """Results of calls that have returned; raises what `_fail` makes of the first error."""
        import ray

        results: dict[int, Any] = {}
        for rank, ref in done.items():
            try:
                results[rank] = ray.get(ref)
            except ray.exceptions.RayError as error:
                others = {r: ref for r, ref in (done | waiting).items() if r != rank and r not in results}
                self._fail(rank, error, others)
            if verb != "ping":
                self._watch.end((verb, rank))
        return results

    def _check(self, verb: str, waiting: dict[int, Any]) -> None:
        """End a wait whose time is over. Raises RanksLost, Stopped, or RunFailed where there is no place."""
        for rank in self._placing.placed():
            self._watch.restart(rank)
        self._placing.check()
        if self._should_stop():
            now = time.monotonic()
            if self._asked_to_stop is None:
                self._asked_to_stop = now
                self._watch.table = replace(self._watch.table, silent=min(self._watch.table.silent, 10.0))
                if verb == "save":
                    self._allow(self._grace(verb))
            if now - self._asked_to_stop > self._grace(verb):
                raise self._lost(f"rank {min(waiting)} has not finished ({verb})")
        late = self._watch.check(lambda rank: pulse_of(self._workers[rank]._actor_id.hex()))
        late = [item for item in late if item.worker not in self._placing.waiting]
        if late:
            stopped = [item for item in late if "sign of life" in item.reason]  # the others wait for these
            raise self._lost("; ".join(map(self._named, stopped or late)))

    def _named(self, late: Overdue) -> str:
        return f"{self.name} {late.worker} of {self.ranks} {late.reason}"

    def _grace(self, verb: str) -> float:
        """How long a stop waits for a call: for a checkpoint up to twice as long as one has taken."""
        usual = self._watch.longest(verb) or 0.0 if verb == "save" else 0.0
        return max(self._watch.table.stop, 2 * usual)

    def _lost(self, text: str, error: type[RanksLost] = RanksLost) -> RanksLost | Stopped:
        """What to raise when ranks are lost: the group is killed."""
        self.shutdown()
        if self._should_stop():
            return Stopped(f"stopped; {text}: the last checkpoint stands, the same command resumes")
        return error(text)

    def _fail(self, rank: int, error: Any, others: dict[int, Any]) -> None:
        """Kill the group and raise: the framework's own error as it is, RanksLost for a death, else RunFailed.

        ResponsesLost where an argument was lost with its machine.
        """
        import ray

        if isinstance(known := getattr(error, "cause", None), FrameworkError):
            self.shutdown()
            raise known
        if isinstance(lost := getattr(error, "cause", None), ray.exceptions.ObjectLostError):
            self.shutdown()
            raise ResponsesLost(f"{self.name} {rank}: what it was to work on is lost: {type(lost).__name__}") from error
        if port_taken(error):
            raise self._lost(f"{self.name} {rank}: its port was taken by another process", PortTaken) from error
        if not is_death(error):
            rank, error = self._blame(rank, error, others)
            if isinstance(known := getattr(error, "cause", None), FrameworkError):
                self.shutdown()
                raise known
        text = cause(error)
        if is_death(error):
            raise self._lost(f"{self.name} {rank} of {self.ranks} died: {text}") from error
        if is_collective(text):
            raise self._lost(f"{self.name} {rank} failed in a collective, though every rank lives: {text}") from error
        self.shutdown()
        raise RunFailed(f"{self.name} {rank} failed: {text}") from error

    def _blame(self, reporting: int, error: Any, others: dict[int, Any]) -> tuple[int, Any]:
        """The rank to blame for an error that one reports, and what it died of, is stopped by or has raised itself.

        Its peers' collectives may fail first: give its death, its own error or its silence a moment to be noticed.
        """
        import ray

        calls = {worker.__ray_ready__.remote(): rank for rank, worker in enumerate(self._workers) if rank != reporting}
        calls |= {ref: rank for rank, ref in others.items()}
        began = time.monotonic()
        first = {rank: pulse_of(self._workers[rank]._actor_id.hex()) for rank in set(calls.values())}
        moved: set[int] = set()
        collective = is_collective(cause(error))
        while calls and time.monotonic() < began + _DEATH_NOTICE_S:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=0.2)
            for ref in ready:
                rank = calls.pop(ref)
                try:
                    ray.get(ref)
                except ray.exceptions.RayError as other:
                    if is_death(other) or (collective and not is_collective(cause(other))):
                        return rank, other
            for rank, pulse in first.items():
                if pulse is None or pulse_of(self._workers[rank]._actor_id.hex()) != pulse:
                    moved.add(rank)
            silent = sorted(first.keys() - moved)
            if collective and silent and time.monotonic() > began + _STOPPED_S:
                return silent[0], TimeoutError("its process gives no sign of life")
            if not collective:
                break  # its own error, unless a peer is known to be dead by now
        return reporting, error
