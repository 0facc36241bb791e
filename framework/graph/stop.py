"""Stopping a run: a flag that SIGINT or SIGTERM sets, and a clock behind it, so that a stop waits for nobody."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from framework.errors import EXIT_STOPPED, Stopped
from framework.graph.deadlines import Deadlines
from framework.streams import leave

logger = logging.getLogger("framework.graph")
CLEAN_UP_S = 12.0  # what ending Ray and the tracker may take once the stage has stopped
AGAIN_S = 5.0  # after a second signal that the main thread does not hear


def never_stop() -> bool:
    """Return False: nobody can ask this run to stop."""
    return False


class StopFlag:
    """Set by SIGINT, SIGTERM or the end of the terminal. A flag: an exception inside `ray.get` would surface late.

    Whatever the run is busy with, its process ends within `limit_s` of the signal, plus what `allow` grants: the last
    checkpoint stands. `end` ends it; it does not return.
    """

    def __init__(self, limit_s: float | None = None, end: Callable[[str], None] | None = None) -> None:
        self.limit_s = Deadlines().stop + CLEAN_UP_S if limit_s is None else limit_s
        self._end = end or _end_process
        self._over = threading.Event()
        self._asked = False  # no Event: a handler that another one interrupts would wait for itself
        self._asked_at = float("inf")
        self._granted = 0.0  # until when something is worth waiting for
        self._at_once = float("inf")  # a second signal's

    def __call__(self) -> bool:
        """Return whether the run was asked to stop."""
        return self._asked

    def set(self) -> None:
        """Ask the run to stop at the next point where everything needed to resume is saved."""
        self._asked = True

    def check(self) -> None:
        """Raise Stopped if the run was asked to stop, where no stage has begun and nothing is to be saved."""
        if self():
            raise Stopped("stopped before the first stage; the same command starts the run")

    def allow(self, seconds: float) -> None:
        """Something worth waiting for, a checkpoint, takes so long from now on."""
        if self():
            self._granted = max(self._granted, time.monotonic() + seconds + CLEAN_UP_S)

    @contextmanager
    def on_signals(self) -> Iterator[StopFlag]:
        """Let the first SIGINT or SIGTERM set the flag and a second one end the process as usual.

        So does SIGHUP, which a shell may send again and which `nohup` ignores. Signals are heard by a thread: Python
        calls their handlers in the main thread, which may be in a library's own code (a tokenizer's training) for long.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        if previous[signal.SIGHUP] == signal.SIG_IGN:
            del previous[signal.SIGHUP]
        again = previous | ({signal.SIGHUP: signal.SIG_IGN} if signal.SIGHUP in previous else {})

        def handle(number: int, frame: FrameType | None) -> None:
            self.set()
            signal.signal(number, again[signal.Signals(number)])

        read, write = os.pipe()
        os.set_blocking(write, False)
        heard = set(previous)
        listening = threading.Thread(target=self._listen, args=(read, heard), daemon=True, name="stop")
        listening.start()
        earlier = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in previous:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            self._over.set()
            signal.set_wakeup_fd(earlier)
            for number, handler in previous.items():
                signal.signal(number, handler)
            os.close(write)
            listening.join(1.0)

    def _listen(self, read: int, heard: Collection[int]) -> None:
        """Say what is heard, and end the process once its time is up: the main thread may hang anywhere."""
        seen: set[int] = set()
        waits = select.poll()
        waits.register(read, select.POLLIN)
        while True:
            for number in os.read(read, 64) if waits.poll(200) else b"":
                if number in heard and number not in seen:
                    seen.add(number)
                    self.set()
                    self._asked_at = min(self._asked_at, time.monotonic())
                    text = "%s: stopping at the next safe point; again to stop now"
                    says = threading.Thread(
                        target=logger.warning, args=(text, signal.Signals(number).name), daemon=True
                    )
                    says.start()  # whoever reads it may have stopped reading, with a lock held by who writes
                    says.join(0.5)
                elif number in heard and number != signal.SIGHUP:
                    self._at_once = min(self._at_once, time.monotonic() + AGAIN_S)
            if self._over.is_set():
                os.close(read)
                return
            if time.monotonic() > min(self._at_once, max(self._asked_at + self.limit_s, self._granted)):
                self._end("stopped without waiting any longer; the last checkpoint stands, the same command resumes")
                return


def _end_process(text: str) -> None:
    """Leave at once: Ray's processes die with this one, and their workers with them."""
    leave(text, EXIT_STOPPED)


os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what a child is sent is not for this process
