"""Notices that Ray itself has died, its raylet or its head: what waits in Ray would wait for ever."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from framework.actors.waits import ABSENT_S
from framework.errors import EXIT_FAILED
from framework.streams import leave

LOOK_EVERY_S = 1.0
OWN = ("gcs_server", "raylet")  # without either nothing can be started or fetched


class RayWatch:
    """Looks after the Ray processes that this one has started, and asks the head which nodes live.

    A process of our own that has ended is dead at once, our node when the head says so, and a head that gives no answer
    after `limit_s`, in which this process was not stopped itself (Ctrl-Z). `on_death` is called once, in a thread, with
    one line.
    """

    def __init__(self, limit_s: float, on_death: Callable[[str], Any]) -> None:
        self._limit_s, self._on_death = limit_s, on_death
        self._over = threading.Event()
        self._answered, self._node_lives = time.monotonic(), True
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._ask, self._watch)]

    def __enter__(self) -> Self:
        import ray
        from ray._private import worker

        node = worker._global_node
        processes = node.all_processes if node is not None else {}
        self._own = {name: [item.process for item in processes.get(name, [])] for name in OWN}
        context = ray.get_runtime_context()
        self._address, self._node = context.gcs_address, context.get_node_id()
        self._answered = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2 * LOOK_EVERY_S)

    def _ask(self) -> None:
        """Ask the head, by a connection of our own: one that `ray.shutdown` closes meanwhile may abort the process."""
        from ray import NodeID
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled

        head, node = GcsClient(address=self._address), NodeID.from_hex(self._node)
        while not self._over.wait(LOOK_EVERY_S):
            with contextlib.suppress(Exception):  # no answer: the other thread counts the seconds
                (self._node_lives,) = head.check_alive([node], timeout=LOOK_EVERY_S)
                self._answered = time.monotonic()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            before, looked = looked, time.monotonic()
            if looked - before > ABSENT_S:
                self._answered = looked
            found = self._dead()
            if found and not self._over.is_set():
                self._on_death(found)
                return

    def _dead(self) -> str:
        for name, processes in self._own.items():
            for process in processes:
                if process.poll() is not None:
                    return f"Ray's {name} has died (exit code {process.returncode})"
        if not self._node_lives:
            return "Ray's head has given this node up: its raylet is dead, or does not answer"
        if time.monotonic() - self._answered > self._limit_s:
            return f"Ray's head at {self._address} has not answered for {self._limit_s:g} s"
        return ""


@contextlib.contextmanager
def watch_start(started: list[subprocess.Popen[bytes]], on_death: Callable[[str], Any]) -> Iterator[None]:
    """Look after Ray's processes while it starts, as `started` fills with them: it waits for dead ones by the minute.

    A busy machine is enough: a raylet ends itself if its agents take too long to name their ports.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            for process in tuple(started):
                name = Path(process.args[0]).name if isinstance(process.args, list) else ""
                if name in OWN and process.poll() is not None:
                    on_death(f"Ray's {name} died as it started (exit code {process.returncode})")
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=2 * LOOK_EVERY_S)


def end_process(text: str) -> None:
    """End this process at once with one line: every other way out asks Ray first."""
    leave(f"{text}; the same command resumes the run", EXIT_FAILED)
