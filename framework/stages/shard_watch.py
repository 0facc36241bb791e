"""Looks after processes that work on shards: one that hangs without dying is killed, and Ray starts its task again.

begun-00012 beside the shards    who works on shard 12: node, process; touched every few seconds while it lives
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from framework.graph.ownership import started_at, touched_at

logger = logging.getLogger("framework.data")
BEGUN = "begun-"
TOUCH_EVERY_S, LOOK_EVERY_S = 2.0, 1.0
ABSENT_S = 10.0  # between two looks: then it was the driver that was stopped


@dataclass(frozen=True)
class Maker:
    """A process that makes a shard: process 4711 of a node, begun 52.3 s after that system's start."""

    node: str  # Ray's name of it; "": no worker of Ray's
    process: int
    started: float

    @staticmethod
    def this_process() -> Maker:
        """Of this process."""
        node = ""
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            node = sys.modules["ray"].get_runtime_context().get_node_id()
        return Maker(node, os.getpid(), started_at(os.getpid()))

    def kill(self) -> None:
        """Kill it, on whatever node it is, unless it has ended by itself."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(self.node, soft=False)
        ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(self.process, self.started)


def _kill(process: int, started: float) -> None:
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if abs(started_at(process) - started) < 1.0:  # else its number has been used again
            os.kill(process, signal.SIGKILL)


@contextmanager
def touching(file: Path) -> Iterator[None]:
    """Touch a file now and then for the length of a block."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(TOUCH_EVERY_S):
            with suppress(OSError):  # the disk is away for a moment
                os.utime(file)

    thread = threading.Thread(target=touch, daemon=True, name="pulse")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass
class ShardWatch:
    """The shards of a step that are being worked on. Times are of `clock`, less what this process itself was away."""

    directory: Path
    silent_s: float
    kill: Callable[[Maker], None] = Maker.kill
    clock: Callable[[], float] = time.monotonic
    _signs: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> when touched, seen since when
    _told: set[tuple[str, float]] = field(default_factory=set)  # whom it waits for
    _killed: set[tuple[str, float]] = field(default_factory=set)
    _looked: float | None = None

    def __post_init__(self) -> None:
        for file in self.directory.glob(f"{BEGUN}*"):  # of processes that are no more: their shards are made again
            self._killed.add((file.name, touched_at(file) or 0.0))
            self._told |= self._killed

    def look(self) -> None:
        """Say after a tenth of the time whom it waits for, and kill it after the whole."""
        now = self.clock()
        if self._looked is not None and now - self._looked > ABSENT_S:
            self._signs = {name: (touched, now) for name, (touched, _) in self._signs.items()}
        self._looked = now
        for file in sorted(self.directory.glob(f"{BEGUN}*")):
            touched = touched_at(file) or 0.0
            before, since = self._signs.get(file.name, (None, now))
            sign, silent = (file.name, touched), now - since
            if touched != before:
                self._signs[file.name] = touched, now
            elif silent > self.silent_s and sign not in self._killed:
                self._killed.add(sign)
                self._replace(file)
            elif silent > max(self.silent_s / 10, 2 * TOUCH_EVERY_S) and sign not in self._told:
                self._told.add(sign)
                text = "waiting for the process that makes %s: no sign of life for %.0f s, it is replaced after %g s"
                logger.warning(text, self._shard(file), silent, self.silent_s)

    def _replace(self, file: Path) -> None:
        with suppress(OSError, ValueError, TypeError):  # just finished, or half written: then it lives
            maker = Maker(**json.loads(file.read_text()))
            text = "%s: process %d gave no sign of life for %g s: it is killed, and another one goes on"
            logger.warning(text, self._shard(file), maker.process, self.silent_s)
            self.kill(maker)

    def _shard(self, file: Path) -> str:
        return f"shard {int(file.name.removeprefix(BEGUN))} of {self.directory.name}"
