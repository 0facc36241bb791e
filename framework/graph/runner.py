"""Runs a graph node by node in the driver process; finished nodes are skipped, a stop leaves everything resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.artifacts import MANIFEST, Artifact
from framework.errors import FrameworkError, Stopped, UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.disk import as_disk_error
from framework.graph.nodes import Graph, Node, Runtime
from framework.graph.stop import never_stop
from framework.graph.store import Store, resolve_inputs
from framework.protocols import Tracker
from framework.types import SampleRow

logger = logging.getLogger("framework.graph")
VERIFIED_BYTES = 1 << 30  # of an input whose digests are looked at before a stage starts: about a second


@dataclass(frozen=True)
class NullTracker:
    """Records nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Drop the metrics."""

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Drop the samples."""

    def expert_load(self, step: int, load_LE: npt.NDArray[np.float64]) -> None:
        """Drop the expert load."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Drop the progress."""

    def rewind(self, step: int) -> None:
        """Nothing was recorded."""


TrackerOf = Callable[[str], Tracker]  # node name -> its tracker


def no_tracking(node: str) -> Tracker:
    """Return a tracker that records nothing, for any node."""
    return NullTracker()


@dataclass(frozen=True)
class Runner:
    """One run of a graph."""

    graph: Graph
    store: Store
    cluster: ClusterConfig
    seed: int = 0
    tracker_of: TrackerOf = no_tracking
    should_stop: Callable[[], bool] = never_stop
    rerun_changed: bool = False  # make anew what other code made
    allow_s: Callable[[float], None] = lambda seconds: None  # `StopFlag.allow`

    def run(self) -> dict[str, Any]:
        """Run every node that is not finished; returns node name -> outputs.

        Raises UserError (bad input, full disk), Stopped (asked to), or what a stage raises.
        """
        finished: dict[str, Any] = {}
        order = self.graph.order()
        for index, node in enumerate(order, start=1):
            finished[node.name] = self._run_node(node, finished, f"[{index}/{len(order)}] {node.name}")
        return finished

    def is_finished(self) -> bool:
        """Return whether every node is finished, so that running would start nothing."""
        finished: dict[str, Any] = {}
        for node in self.graph.order():
            hashes = self.store.input_hashes(resolve_inputs(node, finished))
            key = self.store.key(node, hashes, self.seed)
            outputs = self.store.outputs(node, key)
            if outputs is None or (self.rerun_changed and self.store.changed_code(node, key)):
                return False
            finished[node.name] = outputs
        return True

    def _run_node(self, node: Node, finished: Mapping[str, Any], label: str) -> Any:
        inputs = resolve_inputs(node, finished)
        hashes = self.store.input_hashes(inputs)
        key = self.store.key(node, hashes, self.seed)
        code = self.store.changed_code(node, key)
        if code and self.rerun_changed:
            logger.info("%s: made anew: its code has changed (%s)", label, code)
            self.store.set_aside(node, key)
        outputs = self.store.outputs(node, key)
        if outputs is not None:
            other = f"; made by other code ({code}): --rerun-changed makes it anew" if code else ""
            logger.info("%s: finished before, skipped (%s)%s", label, key, other)
            self.store.discard_work(node, key)  # a kill may have come before that
            return outputs
        if self.should_stop():
            raise Stopped(f"{node.name}: not started; the same command resumes the run")
        if (damage := self.store.damage(node, key)) is not None:
            logger.warning("%s: its result is damaged (%s): it is made again from the stage's own state", label, damage)
        if (other_run := self.store.adopt(node, key)) is not None:
            logger.info("%s: taken from run %s, which has made the same (%s)", label, other_run.name, key)
            return self.store.outputs(node, key)
        work_dir = self._work_dir(node, hashes, key, label)
        logger.info("%s: started (%s)", label, key)
        start = time.monotonic()
        for artifact in inputs.values():
            self._check(artifact)
        runtime = Runtime(
            node=node.name,
            work_dir=work_dir,
            out_dir=self.store.begin(node, key),
            seed=self.seed,
            cluster=self.cluster,
            tracker=self.tracker_of(node.name),
            should_stop=self.should_stop,
            allow_s=self.allow_s,
        )
        try:
            built = node.stage.run(node.inputs_type(**inputs), runtime)
            outputs = self.store.commit(node, key, built, hashes)
        except (UserError, Stopped):
            raise
        except Exception as error:
            if self.should_stop():  # the signal went to the whole process group: what died with it is no failure
                raise Stopped(f"{node.name}: stopped ({_first_line(error)}); the same command resumes it") from error
            if isinstance(error, FrameworkError):
                raise
            if self.store.owner is not None:
                self.store.owner.check()  # without its directory a stage fails in words of its own
            disk_error = as_disk_error(error, self.store.run_dir)
            if disk_error is None:
                raise
            raise disk_error from error
        self.store.discard_work(node, key)
        logger.info("%s: finished in %.1f s", label, time.monotonic() - start)
        return outputs

    def _check(self, artifact: Artifact) -> None:
        """Raise UserError for an input that is not whole; of what is read in a moment, every byte counts."""
        artifact.check()
        if not (artifact.path / MANIFEST).is_file() or sum(artifact.manifest().files.values()) > VERIFIED_BYTES:
            return
        try:
            artifact.verify()
        except UserError as error:
            if self.store.run_dir not in artifact.path.parents:
                raise
            allowed = f"{error.allowed}; without {artifact.path.parent} the same command makes it again"
            raise UserError(error.where, error.value, allowed) from None

    def _work_dir(self, node: Node, hashes: Mapping[str, str], key: str, label: str) -> Path:
        """The stage's own directory; says what becomes of one that other settings or other code began."""
        before = self.store.states(node)
        work_dir = self.store.work_dir(node, hashes, self.seed)
        code = self.store.changed_code(node, key, work_dir)
        if code and self.rerun_changed:
            self.store.set_aside(node, key, work_dir)
            work_dir = self.store.work_dir(node, hashes, self.seed)
            logger.info("%s: begins anew: its code has changed (%s)", label, code)
        elif code:
            text = "%s: goes on from its last checkpoint, though its code has changed (%s): --rerun-changed begins anew"
            logger.info(text, label, code)
        elif before and work_dir.name not in before:
            logger.info("%s: begins anew: a setting, an input or a file has changed since it last ran", label)
        return work_dir


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
