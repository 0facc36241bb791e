"""Runs a step on many shards: what is done stays done, several at once on Ray Data, one alone in this process.

A step is a picklable function of a shard's number. It writes its files whole and returns a `Done`, which is recorded
beside them; a shard that has its record is not made again. Ray Data hands the numbers out, starts a task that died with
its process or node again, and holds back what nobody takes; documents themselves never pass through Ray, only files.

A text can kill the process that works on it: a crash in native code, all memory gone. Where a shard was begun by a
process that is no more, the next one is careful: it hands each document to a process beside it.

A process can also hang without dying. Whoever works on a shard touches the file that says so every few seconds; one
that does not for `cluster.deadlines.silent` is killed, and counts as dead.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from framework.artifacts import FileNote
from framework.data.text.beside import Beside, Died, pickled
from framework.data.text.shard_files import Done
from framework.errors import RunFailed
from framework.files import write_atomically
from framework.graph.nodes import Runtime
from framework.stages.shard_watch import BEGUN, LOOK_EVERY_S, Maker, ShardWatch, touching

logger = logging.getLogger("framework.data")


class Step(Protocol):
    """What is done to each shard."""

    @property
    def directory(self) -> Path:
        """Where its files and records go."""
        ...

    def __call__(self, number: int) -> Done:
        """Make the files of one shard."""
        ...


@runtime_checkable
class Careful(Protocol):
    """A step whose documents may kill the process."""

    def careful(self) -> Self:
        """The same step, in which each document is worked on in a process beside: it alone is lost."""
        ...


def run_shards(step: Step, count: int, runtime: Runtime, unit: str) -> list[Done]:
    """Do `step` for shards 0 to `count` - 1; returns what was done, in their order.

    Raises what the step raises of the first shard that fails, Stopped once the run is asked to stop.
    """
    step.directory.mkdir(parents=True, exist_ok=True)
    found = {number: done for number in range(count) if (done := _recorded(step.directory, number)) is not None}
    waiting = [number for number in range(count) if number not in found]
    if len(found) and waiting:
        logger.info("%s: %d of %d shards were done before", unit, len(found), count)
    for number in _results(step, waiting, runtime):
        done = _recorded(step.directory, number)
        if done is None:
            raise RunFailed(f"{step.directory}: shard {number} was made, but is not there: is this disk shared?")
        found[number] = done
        runtime.tracker.progress(len(found), count, unit)
        if len(found) < count:
            runtime.stop_if_asked()
    return [found[number] for number in range(count)]


def _results(step: Step, waiting: Sequence[int], runtime: Runtime) -> Iterator[int]:
    """Numbers of shards as they are finished."""
    if len(waiting) < 2 or runtime.cluster.cpus < 2 or not _ray_is_up():
        silent_s = runtime.cluster.deadlines.silent
        with Beside(silent_s=silent_s, while_waiting=runtime.stop_if_asked) as beside:
            for number in waiting:
                _make_here(step, number, beside)
                yield number
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it greets, and tells how to get its bars back
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    pool = ray.data.TaskPoolStrategy(size=min(len(waiting), runtime.cluster.cpus))
    # One operator alone: a task that reads numbers, as `ray.data.range` has, waits for a core that the others hold.
    numbers = ray.data.from_items(list(waiting), override_num_blocks=len(waiting))
    rows = numbers.map(partial(_call, step), compute=pool).iter_rows()
    for row in _awaited(rows, ShardWatch(step.directory, runtime.cluster.deadlines.silent), runtime):
        if row["error"]:
            raise pickle.loads(row["error"])
        yield int(row["number"])


def _awaited(rows: Iterable[dict[str, Any]], watch: ShardWatch, runtime: Runtime) -> Iterator[dict[str, Any]]:
    """Yield rows as they come; meanwhile look after those who make them. Raises Stopped once the run is to stop."""
    found: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for row in rows:
                found.put(row)
            found.put(None)
        except BaseException as error:
            found.put(error)

    threading.Thread(target=read, daemon=True, name="shards").start()
    while True:
        try:
            row = found.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            runtime.stop_if_asked()
            watch.look()
            continue
        if isinstance(row, BaseException):
            raise row
        if row is None:
            return
        yield row


def _call(step: Step, row: dict[str, Any]) -> dict[str, Any]:
    """A task of Ray Data: makes a shard, and hands on what was raised as it is."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # there is a task for every core
    number, error = int(row["item"]), b""
    try:
        _make(step, number)
    except Exception as raised:
        error = pickled(raised)
    return {"number": number, "error": error}


def _make_here(step: Step, number: int, beside: Beside) -> None:
    """Make a shard; what may kill a process not in this one, which is the run's."""
    if not isinstance(step, Careful):
        _make(step, number)
        return
    try:
        beside.call(_make, step, number)
    except Died as died:
        logger.info("shard %d: the process that worked on it was lost (%s): once more, with care", number, died)
        _make(step, number)


def _make(step: Step, number: int) -> None:
    begun = step.directory / f"{BEGUN}{number:05d}"
    if isinstance(step, Careful) and begun.exists():
        step = step.careful()
    begun.write_text(json.dumps(asdict(Maker.this_process())))
    try:
        with touching(begun):
            done = step(number)
        write_atomically(_record(step.directory, number), json.dumps(asdict(done)))
    finally:  # whatever is raised: this process lives
        begun.unlink(missing_ok=True)


def _record(directory: Path, number: int) -> Path:
    return directory / f"done-{number:05d}.json"


def _recorded(directory: Path, number: int) -> Done | None:
    """What is known of a shard that is finished and whole."""
    try:
        found = json.loads(_record(directory, number).read_text())
    except (FileNotFoundError, ValueError):  # a torn record is none
        return None
    files = {name: FileNote(**note) for name, note in found.pop("files").items()}
    for name, note in files.items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != note.bytes:
            return None
    first = tuple((key, row) for key, row in found.pop("first"))
    problem = None if found["problem"] is None else tuple(found["problem"])
    return Done(files, found["counts"], found["shown"], tuple(found["sources"]), first, problem)


def _ray_is_up() -> bool:
    """Whether this process has joined Ray; one that has not imported it has not."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())
