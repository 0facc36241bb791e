"""TensorBoard: event files in `<run>/tensorboard`, names under their stage. Look at them with `tensorboard --logdir`.

As in wandb, steps that a resume repeats stand twice; the run's own files hold them once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Writes event files."""

    def __init__(self, target: TensorBoardTarget) -> None:
        from tensorboardX import SummaryWriter

        self.target = target
        self._writer = SummaryWriter(str(target.run_dir / FOLDER), flush_secs=10)
        self._loads_seen: dict[str, int] = {}  # stage -> step of the newest expert load

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Record values of one step as `<stage>/<name>`."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None:
        """Record responses as text, a table in Markdown."""
        lines = ["| prompt | response | reward |", "|---|---|---|"]
        lines += [f"| {_cell(r.prompt)} | {_cell(r.response)} | {r.reward:.3f} |" for r in rows[: self.target.max_rows]]
        self._writer.add_text(f"{stage}/samples", "\n".join(lines), step)

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None:
        """Draw each expert's load whenever a multiple of `heat_map_every` steps has passed."""
        every, before = self.target.heat_map_every, self._loads_seen.get(stage, step - 1)
        self._loads_seen[stage] = step
        if step // every != before // every:
            self._writer.add_image(f"{stage}/experts/load", heat_map_image(load_LE), step, dataformats="HWC")

    def close(self, stage: str) -> None:
        """Put what the stage has recorded on the disk."""
        self._writer.flush()

    def finish(self, exit_code: int = 0) -> None:
        """Close the event file."""
        self._writer.close()


def _cell(text: str) -> str:
    """A text inside a Markdown table, its own marks escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", "<br>")
