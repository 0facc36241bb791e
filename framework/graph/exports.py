"""Policies that a stage writes while it trains: where they lie in a run, and how they are found by their step.

runs/<run>/state/<node>-<key>/exports/step_NNNNNN/   a Hugging Face checkpoint with its tokenizer, every `export_every`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from framework.errors import UserError

EXPORTS = "exports"  # in a stage's own directory


@dataclass(frozen=True)
class Export:
    """A policy in the middle of its training."""

    path: Path
    node: str  # the stage that trains it, e.g. "grpo"
    step: int  # optimizer steps that it has taken


def export_name(step: int) -> str:
    """The directory of the policy after `step` optimizer steps."""
    return f"step_{step:06d}"


def exports_of(run_dir: Path) -> list[Export]:
    """Return every export of a run in the order in which they were written; half-written ones are left out."""
    found = []
    for path in run_dir.glob(f"state/*/{EXPORTS}/step_*"):
        node = re.fullmatch(r"(.+)-[0-9a-f]{12}", path.parents[1].name)
        if node is not None and path.name[5:].isdigit() and (path / "config.json").is_file():
            found.append(Export(path, node[1], int(path.name[5:])))
    return sorted(found, key=lambda export: (export.path.stat().st_mtime, export.step))


def find_export(run_dir: Path, step: int) -> Export:
    """Return a run's export after `step` optimizer steps: the newest, where several stages have one.

    Raises UserError that lists the steps there are.
    """
    found = exports_of(run_dir)
    chosen = [export for export in found if export.step == step]
    if not chosen:
        steps = ", ".join(map(str, sorted({export.step for export in found})))
        allowed = f"{run_dir} has {steps}" if found else f"{run_dir} has none: stage.grpo.export_every=N writes them"
        raise UserError("--step", step, allowed)
    return chosen[-1]
