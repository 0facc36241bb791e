"""What supervised training leaves on the way: the state of the lowest held-out loss, and Hugging Face exports.

<work_dir>/best/step_NNNNNN/    engine state of the lowest held-out loss; the file BEST beside it names it
           exports/step_NNNNNN/ as `graph.exports` finds them
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framework.data.tokenizer_files import copy_tokenizer
from framework.errors import DamagedState
from framework.files import clear_way, remove_tree, write_atomically
from framework.graph.exports import EXPORTS, export_name
from framework.rotation import BEST

if TYPE_CHECKING:
    from framework.engines.trainer import Trainer


@dataclass(frozen=True)
class Milestones:
    """Which of them a run leaves. Every method is collective: all ranks call it with the same arguments."""

    export_every: int = 0  # steps; 0: none
    export: Literal["last", "best"] = "last"  # best: the state of the lowest held-out loss is kept, and given on
    tokenizer: Path | None = None  # goes with the exports

    def evaluated(self, work_dir: Path, trainer: Trainer[Any, Any], step: int, loss: float) -> None:
        """Keep the state if its held-out loss is the lowest so far; the one before goes once this one is whole."""
        import torch
        import torch.distributed as dist

        if self.export != "best":
            return
        first, pointer = trainer.engine.rank == 0, work_dir / "best" / BEST
        better = torch.tensor([float(first and loss < _lowest(pointer))], device=trainer.engine.device)
        dist.broadcast(better, src=0)
        if not better.item():
            return
        final = pointer.with_name(export_name(step))
        building = final.with_name(f".{final.name}")
        if first:
            clear_way(building)
            building.mkdir(parents=True)
        dist.barrier()
        trainer.save(building)
        dist.barrier()
        if first:
            clear_way(final)
            building.rename(final)
            write_atomically(pointer, json.dumps({"name": final.name, "step": step, "loss": loss}))
            for old in pointer.parent.glob("step_*"):
                if old != final:
                    remove_tree(old)

    def stepped(self, work_dir: Path, trainer: Trainer[Any, Any], step: int) -> None:
        """Export the model if a step is due."""
        import torch.distributed as dist

        if not self.export_every or step % self.export_every:
            return
        final = work_dir / EXPORTS / export_name(step)
        building = final.with_name(f".{final.name}")
        if trainer.engine.rank == 0:
            clear_way(building)
        dist.barrier()
        trainer.export(building)
        if trainer.engine.rank == 0:
            if self.tokenizer is not None:
                copy_tokenizer(self.tokenizer, building)
            clear_way(final)
            building.rename(final)

    def finish(self, work_dir: Path, trainer: Trainer[Any, Any]) -> str:
        """Load the state that is given on; returns what there is to say of it."""
        pointer = work_dir / "best" / BEST
        if self.export != "best":
            return ""
        if not pointer.is_file():
            return "nothing was held out, so no model is the best: the last one is given on"
        try:
            found = json.loads(pointer.read_text())
            told = (
                f"the model of step {found['step']} is given on: its held-out loss is the lowest, {found['loss']:.4f}"
            )
            best = pointer.with_name(found["name"])
        except (ValueError, KeyError, TypeError) as error:
            return f"{pointer} is damaged ({type(error).__name__}: {error}): the last model is given on"
        try:
            trainer.load(best)
        except DamagedState as error:  # seen before anything was loaded: the last weights are still there
            return f"the best checkpoint is damaged ({error}): the last one is given on"
        return told


def _lowest(pointer: Path) -> float:
    """The lowest held-out loss so far; infinity before the first, and where its note or its state is gone."""
    try:
        found = json.loads(pointer.read_text())
        return float(found["loss"]) if pointer.with_name(found["name"]).is_dir() else math.inf
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
