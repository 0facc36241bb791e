"""Progress of the stages: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from framework.actors.awaiting import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class ProgressConfig:
    """How progress is shown."""

    seconds_between_lines: float = 5.0  # in a log; the first and the last line of a stage always appear


@dataclass
class _StageClock:
    started: float
    first_done: int  # work that a resumed stage found done: not part of its speed
    last_line: float = float("-inf")
    last_done: int = -1


class StageProgress:
    """Shows progress on `stream`; a bar if that is a terminal, else lines."""

    def __init__(
        self,
        config: ProgressConfig | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.stream, self._now = config or ProgressConfig(), stream or sys.stderr, clock
        self._stages: dict[str, _StageClock] = {}
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total` with a short `text`, such as the current reward."""
        if self.stream.isatty():
            self._move_bar(stage, done, total, text)
        else:
            self._print_line(stage, done, total, text)

    def close(self, stage: str) -> None:
        """Leave the stage's bar as it stands."""
        self._stages.pop(stage, None)
        task = self._tasks.pop(stage, None)
        if self._bar is not None and task is not None:
            self._bar.stop_task(task)
        if self._bar is not None and not self._tasks:
            self._bar.stop()
            self._bar = None

    def _print_line(self, stage: str, done: int, total: int, text: str) -> None:
        now = self._now()
        clock = self._stages.setdefault(stage, _StageClock(now, done))
        finished_now = done >= total and clock.last_done != done
        if not finished_now and now - clock.last_line < self.config.seconds_between_lines:
            return
        clock.last_line, clock.last_done = now, done
        elapsed, gained = now - clock.started, done - clock.first_done
        left = f", {format_seconds(elapsed / gained * (total - done))} left" if gained > 0 and done < total else ""
        share = f"{done / total:4.0%}" if total else "  - "
        line = f"[{stage}] {done}/{total} {share} {format_seconds(elapsed)}{left}{'  ' + text if text else ''}"
        with contextlib.suppress(BrokenPipeError):  # whoever watched (`2>&1 | head`) has gone: the run goes on
            print(line, file=self.stream, flush=True)

    def _move_bar(self, stage: str, done: int, total: int, text: str) -> None:
        if self._bar is None:
            self._bar = _new_bar(self.stream)
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, text=text)
        self._bar.update(self._tasks[stage], completed=done, total=total, text=text)


def _new_bar(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[Any] = [
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    ]
    return Progress(*columns, console=Console(file=stream), refresh_per_second=4)
