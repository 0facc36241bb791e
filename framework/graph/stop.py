"""Stopping a run: a flag that SIGINT or SIGTERM sets, and a clock behind it, so that a stop waits for nobody."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from framework.errors import EXIT_STOPPED, Stopped
from framework.graph.deadlines import Deadlines

logger = logging.getLogger("framework.graph")
CLEAN_UP_S = 12.0  # what ending Ray and the tracker may take once the stage has stopped


def never_stop() -> bool:
    """Return False: nobody can ask this run to stop."""
    return False


class StopFlag:
    """Set by SIGINT or SIGTERM. A flag, because an exception inside `ray.get` would surface late.

    Whatever the run is busy with, its process ends within `limit_s` of the signal, plus what `allow` grants: the last
    checkpoint stands. `end` ends it; it does not return.
    """

    def __init__(self, limit_s: float | None = None, end: Callable[[str], None] | None = None) -> None:
        self.limit_s = Deadlines().stop + CLEAN_UP_S if limit_s is None else limit_s
        self._end = end or _end_process
        self._event, self._over = threading.Event(), threading.Event()
        self._deadline = float("inf")

    def __call__(self) -> bool:
        """Return whether the run was asked to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask the run to stop at the next point where everything needed to resume is saved."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped if the run was asked to stop, where no stage has begun and nothing is to be saved."""
        if self():
            raise Stopped("stopped before the first stage; the same command starts the run")

    def allow(self, seconds: float) -> None:
        """Something worth waiting for, a checkpoint, takes so long from now on."""
        if self():
            self._deadline = max(self._deadline, time.monotonic() + seconds + CLEAN_UP_S)

    @contextmanager
    def on_signals(self) -> Iterator[StopFlag]:
        """Let the first SIGINT or SIGTERM set the flag and a second one end the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def handle(number: int, frame: FrameType | None) -> None:
            logger.warning("%s: stopping at the next safe point; again to stop now", signal.Signals(number).name)
            self._deadline = time.monotonic() + self.limit_s
            self.set()
            threading.Thread(target=self._watch, daemon=True, name="stop").start()
            signal.signal(number, previous[signal.Signals(number)])

        for number in previous:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            self._over.set()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _watch(self) -> None:
        """End the process once its time is up, in a thread: the main one may hang anywhere."""
        while not self._over.wait(timeout=0.2):
            if time.monotonic() > self._deadline:
                self._end("stopped without waiting any longer; the last checkpoint stands, the same command resumes")
                return


def _end_process(text: str) -> None:
    """Leave at once: Ray's processes die with this one, and their workers with them."""
    print(f"framework: {text}", file=sys.stderr, flush=True)
    os._exit(EXIT_STOPPED)
