"""Keeps a sink that may fail or hang away from the loop: calls are queued, and one thread makes them.

    loop  --put, never waits-->  queue (bounded)  -->  thread  -->  sink (wandb, ...)

A sink that raises is closed and opened again, later each time; one that hangs is broken off. Both are said once. What
the queue has no room for is left out of the sink: the run's own files hold everything.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from framework.errors import UserError
from framework.observe.metrics import Load, Sink
from framework.types import SampleRow

logger = logging.getLogger("framework.observe")


@dataclass(frozen=True)
class Patience:
    """Seconds and sizes of `BackgroundSink`."""

    queued: int = 1000  # calls that wait for a sink that fails or hangs
    open_s: float = 100.0  # of the first opening, whose refusal is the user's to know
    quiet_s: float = 20.0  # of one call, before the user hears of it
    hang_s: float = 60.0  # of one call, before what it waits for is ended
    retry_s: float = 5.0  # before the first opening anew; twice as long each time
    retry_most_s: float = 300.0
    stop_s: float = 10.0  # of the last calls of a run that stops or failed


class Openable(Protocol):
    """How a sink is opened, and what is done where it does not answer."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def open(self) -> EndableSink:
        """Open it; UserError is the user's to mend, any other error is tried again."""
        ...

    def break_off(self) -> None:
        """End what a call waits for, so that it raises; harmless where nothing runs."""
        ...


class EndableSink(Sink, Protocol):
    """A sink of a whole run."""

    def finish(self, exit_code: int = 0) -> None:
        """End it."""
        ...


_Call = Callable[[EndableSink], None]


class BackgroundSink:
    """A `Sink` whose calls return at once and never raise. Raises UserError if the sink refuses to open at first."""

    def __init__(self, target: Openable, patience: Patience | None = None) -> None:
        self.target, self.patience = target, patience or Patience()
        self.dropped = 0  # calls that the sink will never see
        self._calls: queue.Queue[_Call | None] = queue.Queue(self.patience.queued)  # None: the end
        self._sink: EndableSink | None = None
        self._refusal: UserError | None = None
        self._opened, self._ending = threading.Event(), threading.Event()
        self._busy_since: float | None = None  # when the call under way began
        self._broken: float | None = None  # the same, of the call that was broken off last
        self._troubled = False
        self._exit_code = 0
        self._thread = threading.Thread(target=self._work, name=f"{target.name}-sink", daemon=True)
        self._thread.start()
        if not self._opened.wait(self.patience.open_s):
            self._trouble(f"has not answered for {self.patience.open_s:.3g} s")
        if self._refusal is not None:
            raise self._refusal
        atexit.register(self.finish, 1)  # a process that ends without closing still sends what is queued

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Queue values of one step."""
        values = dict(metrics)
        self._put(lambda sink: sink.log(stage, step, values))

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None:
        """Queue sampled responses."""
        kept = tuple(rows)
        self._put(lambda sink: sink.samples(stage, step, kept))

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None:
        """Queue tokens routed to each expert."""
        load = load_LE.copy()
        self._put(lambda sink: sink.expert_load(stage, step, load))

    def close(self, stage: str) -> None:
        """Queue the end of a stage."""
        self._put(lambda sink: sink.close(stage))

    def finish(self, exit_code: int = 0, wait_s: float | None = None) -> None:
        """End the sink; wait at most `wait_s` (default: `stop_s`) for what is queued. Calling it twice is harmless."""
        if self._ending.is_set():
            return
        atexit.unregister(self.finish)
        wait_s = self.patience.stop_s if wait_s is None else wait_s
        until = time.monotonic() + wait_s
        self._exit_code = exit_code
        self._ending.set()
        with contextlib.suppress(queue.Full):  # then it hangs, and what follows breaks it off
            self._calls.put(None, timeout=wait_s)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._trouble(f"has not answered for {wait_s:.3g} s at the end of the run")
            self.target.break_off()
            self._thread.join(2.0)
        lost = self.dropped + sum(call is not None for call in list(self._calls.queue))
        if lost:
            logger.warning("%s lacks %d records of this run; the run's own files have them", self.target.name, lost)

    def _put(self, call: _Call) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self.dropped += 1
        since = self._busy_since
        waited = 0.0 if since is None else time.monotonic() - since
        if waited > self.patience.quiet_s:
            self._trouble(f"has not answered for {waited:.3g} s")
        if waited > self.patience.hang_s and self._broken != since:
            self._broken = since
            self.target.break_off()

    def _work(self) -> None:
        """Make the queued calls in order, each until it succeeds."""
        call: _Call | None = _nothing
        delay, tries_left = self.patience.retry_s, 2  # tries once the run is ending
        while True:
            try:
                self._busy_since = time.monotonic()
                if self._sink is None:
                    self._sink = self.target.open()
                    self._opened.set()
                if call is None:
                    return self._sink.finish(self._exit_code)
                call(self._sink)
                self._busy_since = None
                if self._troubled:
                    self._troubled, delay = False, self.patience.retry_s
                    logger.info("%s answers again", self.target.name)
                call = self._calls.get()
            except Exception as error:
                self._busy_since, self._sink = None, None
                if isinstance(error, UserError) and not self._opened.is_set():
                    self._refusal = error
                    return self._opened.set()
                self._opened.set()
                self._trouble(f"failed ({type(error).__name__}: {' '.join(str(error).split())})")
                self.target.break_off()
                if self._ending.wait(delay):
                    tries_left -= 1
                    if not tries_left:
                        self.dropped += call not in (None, _nothing)
                        return None
                delay = min(2 * delay, self.patience.retry_most_s)

    def _trouble(self, what: str) -> None:
        """Say it once, until the sink answers again."""
        if not self._troubled:
            self._troubled = True
            text = "%s %s: training goes on, its numbers are in metrics.jsonl, and %s is tried again"
            logger.warning(text, self.target.name, what, self.target.name)


def _nothing(sink: EndableSink) -> None:
    """What is called before there is anything to send."""
