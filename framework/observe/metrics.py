"""Metrics of a run as append-only JSON lines: one writer for each stage, and the reader that the report uses.

Files under the run directory: metrics.jsonl, samples.jsonl, expert_load.jsonl. Every line carries stage, step and time
(seconds since 1970). A line is written whole by one `write`, so a killed process leaves at most a torn last line,
which the reader counts and skips. A step may be logged several times (other names, or again after a resume): the last
value of each name stands. `rewind` withdraws the steps that a resume is about to repeat.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from framework.errors import UserError
from framework.observe.machine import describe_machine
from framework.types import SampleRow

METRICS, SAMPLES, EXPERT_LOAD = "metrics.jsonl", "samples.jsonl", "expert_load.jsonl"
Load = npt.NDArray[np.float64]


class Sink(Protocol):
    """Where metrics go besides the run's own files."""

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record values of one step."""
        ...

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None:
        """Record sampled responses."""
        ...

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None:
        """Record tokens routed to each expert."""
        ...

    def close(self, stage: str) -> None:
        """The stage is over; the sink may serve another one after it."""
        ...


class ProgressDisplay(Protocol):
    """Shows people how far a stage is."""

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total`."""
        ...

    def close(self, stage: str) -> None:
        """The stage is over."""
        ...


class Tracker:
    """Records one stage of a run. As a context manager, only a stage that leaves it without an error is finished.

    Raises UserError if the run directory can't be written (a full disk, no permission).
    """

    def __init__(
        self, run_dir: Path, stage: str, sinks: Sequence[Sink] = (), display: ProgressDisplay | None = None
    ) -> None:
        self.run_dir, self.stage, self.sinks, self.display = run_dir, stage, tuple(sinks), display
        with suppress(OSError):  # what is wrong with it shows as the first line is written
            run_dir.mkdir(parents=True, exist_ok=True)
        self._append(METRICS, {"event": "start", "machine": describe_machine()})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values at `step`; NaN and infinities are kept as such."""
        self._append(METRICS, {"step": step, "metrics": {name: _encode(value) for name, value in metrics.items()}})
        for sink in self.sinks:
            sink.log(self.stage, step, metrics)

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Record responses sampled for `step`."""
        encoded = [
            asdict(row)
            | {
                "reward": _encode(row.reward),
                "advantage": _encode(row.advantage),
                "components": {name: _encode(value) for name, value in row.components.items()},
            }
            for row in rows
        ]
        self._append(SAMPLES, {"step": step, "rows": encoded})
        for sink in self.sinks:
            sink.samples(self.stage, step, rows)

    def expert_load(self, step: int, load_LE: npt.NDArray[Any]) -> None:
        """Record tokens routed to each expert, [L, E], and as metrics each layer's max / mean (0 without tokens)."""
        load = np.asarray(load_LE, dtype=np.float64)
        mean_L = load.mean(axis=1)
        ratio_L = np.divide(load.max(axis=1), mean_L, out=np.zeros_like(mean_L), where=mean_L != 0)
        self._append(EXPERT_LOAD, {"step": step, "load_LE": [[_encode(value) for value in row] for row in load]})
        for sink in self.sinks:
            sink.expert_load(self.stage, step, load)
        self.log(step, {f"experts/layer_{layer}": float(ratio) for layer, ratio in enumerate(ratio_L)})

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` steps are over."""
        if self.display is not None:
            self.display.progress(self.stage, done, total, text)

    def rewind(self, step: int) -> None:
        """Withdraw what was recorded after `step`; call on a resume from that step, before logging."""
        for name in (METRICS, SAMPLES, EXPERT_LOAD):
            self._append(name, {"event": "rewind", "step": step})

    def close(self, finished: bool = True) -> None:
        """End the stage; `finished=False` when it was interrupted and is to be resumed."""
        self._append(METRICS, {"event": "end", "finished": finished})
        for sink in self.sinks:
            sink.close(self.stage)
        if self.display is not None:
            self.display.close(self.stage)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.close(finished=error_type is None)

    def _append(self, name: str, record: dict[str, Any]) -> None:
        line = json.dumps({"stage": self.stage, "time": round(time.time(), 3), **record}, allow_nan=False) + "\n"
        path = self.run_dir / name
        try:
            with path.open("ab+") as handle:
                if handle.seek(0, os.SEEK_END) > 0:
                    handle.seek(-1, os.SEEK_END)
                    if handle.read(1) != b"\n":  # a killed process left a torn line: don't glue ours to it
                        line = "\n" + line
                handle.write(line.encode())
        except OSError as error:  # never made anew: half a run would stand where a whole one was moved away
            allowed = "must be writable, on a disk with space left"
            if isinstance(error, FileNotFoundError) and not self.run_dir.exists():
                allowed = f"{self.run_dir} was moved or deleted while it was being worked on"
            raise UserError(str(path), error.strerror, allowed) from error


@dataclass
class StageHistory:
    """What the files say about one stage; steps ascend in every series."""

    name: str
    series: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))  # metric -> step -> value
    samples: dict[int, tuple[SampleRow, ...]] = field(default_factory=dict)  # step -> rows
    expert_load: dict[int, Load] = field(default_factory=dict)  # step -> [L, E]
    seconds: float = 0.0  # spent in the stage over all its processes, pauses between them left out
    starts: int = 0
    first_time: float = 0.0
    last_start: float = 0.0
    last_time: float = 0.0
    state: Literal["finished", "stopped", "unfinished"] = "unfinished"
    machine: dict[str, str] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """Highest step with a metric; -1 before the first one."""
        return max((max(values) for values in self.series.values() if values), default=-1)


@dataclass(frozen=True)
class RunHistory:
    """Everything recorded about a run, stages in order of their start."""

    stages: Mapping[str, StageHistory]
    torn_lines: int  # lines that a killed process left half-written, or that are damaged


def read_history(run_dir: Path) -> RunHistory:
    """Read the three files of `run_dir`; a missing file counts as empty."""
    stages: dict[str, StageHistory] = {}
    torn = 0
    for name in (METRICS, SAMPLES, EXPERT_LOAD):
        for record in _records(run_dir / name):
            if record is None:
                torn += 1
                continue
            try:
                stage = stages.setdefault(record["stage"], StageHistory(record["stage"]))
                _take(stage, name, record)
            except (KeyError, TypeError, ValueError, AttributeError):  # whole, but not as it was written
                torn += 1
    for stage in stages.values():
        stage.series = {metric: dict(sorted(values.items())) for metric, values in stage.series.items() if values}
        stage.samples, stage.expert_load = dict(sorted(stage.samples.items())), dict(sorted(stage.expert_load.items()))
    return RunHistory(dict(sorted(stages.items(), key=lambda item: item[1].first_time)), torn)


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield each line's record; None for a torn line."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as handle:
        for line in handle:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if line.strip():
                yield record if isinstance(record, dict) and {"stage", "time"} <= record.keys() else None


def _take(stage: StageHistory, file: str, record: Mapping[str, Any]) -> None:
    event = record.get("event")
    if event == "rewind":
        _forget_after(stage, file, int(record["step"]))
    elif file == SAMPLES:
        stage.samples[int(record["step"])] = tuple(_decode_row(row) for row in record["rows"])
    elif file == EXPERT_LOAD:
        stage.expert_load[int(record["step"])] = np.array(
            [[float(value) for value in row] for row in record["load_LE"]], dtype=np.float64
        )
    else:
        _take_time(stage, record)
        for metric, value in record.get("metrics", {}).items():
            stage.series[metric][int(record["step"])] = float(value)


def _take_time(stage: StageHistory, record: Mapping[str, Any]) -> None:
    now, event = float(record["time"]), record.get("event")
    if event == "start":
        stage.starts += 1
        stage.first_time, stage.last_start = stage.first_time or now, now
        stage.state, stage.machine = "unfinished", dict(record["machine"])
    else:
        stage.seconds += max(0.0, now - stage.last_time)
    if event == "end":
        stage.state = "finished" if record["finished"] else "stopped"
    stage.last_time = now


def _forget_after(stage: StageHistory, file: str, step: int) -> None:
    recorded: list[dict[int, Any]] = list(stage.series.values())
    if file != METRICS:
        recorded = [stage.samples] if file == SAMPLES else [stage.expert_load]
    for values in recorded:
        for late in [s for s in values if s > step]:
            del values[late]


def _decode_row(row: Mapping[str, Any]) -> SampleRow:
    components = {name: float(value) for name, value in row["components"].items()}
    numbers = {"reward": float(row["reward"]), "advantage": float(row["advantage"]), "components": components}
    return SampleRow(**{**row, **numbers})


def _encode(value: float) -> float | str:
    """JSON has no NaN or infinity: write them as the strings that `float` reads back."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
