"""TensorBoard: event files in `<run>/tensorboard`, names under their stage. Look at them with `tensorboard --logdir`.

As in wandb, steps that a resume repeats stand twice; the run's own files hold them once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.observe.metrics import Load
from framework.observe.wandb_sink import heat_map_image
from framework.types import SampleRow

FOLDER = "tensorboard"


@dataclass(frozen=True)
class TensorBoardTarget:
    """Opens `TensorBoardSink`s of one run; see `background.BackgroundSink`."""

    run_dir: Path
    heat_map_every: int  # steps
    max_rows: int  # responses of one step
    name: str = "TensorBoard"

    def open(self) -> TensorBoardSink:
        """Start a new event file."""
        return TensorBoardSink(self)

    def break_off(self) -> None:
        """Nothing runs that could be ended: only the disk is waited for."""


class TensorBoardSink:
    """Writes event files. Each call has written when it returns, or raises: `BackgroundSink` has the thread for it.

    The library's own writer has one more, which a full disk ends; whoever calls it then waits for ever.
    """

    def __init__(self, target: TensorBoardTarget) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        self.target, self._summary, self._event = target, summary, Event
        folder = target.run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{secrets.token_hex(4)}")  # its own name has seconds alone
        self._loads_seen: dict[str, int] = {}  # stage -> step of the newest expert load

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record values of one step as `<stage>/<name>`."""
        self._write(step, *(self._summary.scalar(f"{stage}/{name}", value) for name, value in metrics.items()))

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None:
        """Record responses as text, a table in Markdown."""
        lines = ["| prompt | response | reward |", "|---|---|---|"]
        lines += [f"| {_cell(r.prompt)} | {_cell(r.response)} | {r.reward:.3f} |" for r in rows[: self.target.max_rows]]
        self._write(step, self._summary.text(f"{stage}/samples", "\n".join(lines)))

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None:
        """Draw each expert's load whenever a multiple of `heat_map_every` steps has passed."""
        every, before = self.target.heat_map_every, self._loads_seen.get(stage, step - 1)
        self._loads_seen[stage] = step
        if step // every != before // every:
            self._write(step, self._summary.image(f"{stage}/experts/load", heat_map_image(load_LE), dataformats="HWC"))

    def close(self, stage: str) -> None:
        """Nothing: what it has recorded is on the disk."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the event file."""
        self._file.close()

    def _write(self, step: int, *summaries: Any) -> None:
        for summary in summaries:
            self._file.write_event(self._event(summary=summary, step=step, wall_time=time.time()))
        self._file.flush()


def _cell(text: str) -> str:
    """A text inside a Markdown table, its own marks escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", "<br>")
