"""What a run's evaluations came to: a row for each checkpoint, and what the last one gained over the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from framework.types import EvalResult

MAX_PARTS = 12  # rows under each evaluation


@dataclass(frozen=True)
class Gain:
    """How much better one checkpoint does than another, in pass@1."""

    points: float  # a share: 0.1 is ten percentage points
    error: float | None  # one standard error; None: too few prompts to tell
    n_paired: int  # prompts that both answered, which both numbers are over; 0: not paired


def gain(first: EvalResult, last: EvalResult) -> Gain | None:
    """Return what `last` gained over `first`; None if one of them has no prompt with a verdict.

    Both answered the same prompts, some of them easy and some hard: differences by prompt leave that out of the error.
    Evaluations that share no prompt, or kept no shares by prompt, are taken as independent.
    """
    shared = [key for key in last.right_share if key in first.right_share]
    if shared:
        differences = [last.right_share[key] - first.right_share[key] for key in shared]
        error = stdev(differences) / math.sqrt(len(shared)) if len(shared) > 1 else None
        return Gain(mean(differences), error, len(shared))
    before, after = first.overall, last.overall
    if before.pass_at_1 is None or after.pass_at_1 is None:
        return None
    errors = (before.pass_at_1_se, after.pass_at_1_se)
    error = None if None in errors else math.hypot(*(error or 0.0 for error in errors))
    return Gain(after.pass_at_1 - before.pass_at_1, error, 0)


def share(value: float | None, error: float | None = None) -> str:
    """Return a share in percent, with its standard error if there is one; a dash for what nothing was measured of."""
    if value is None:
        return "–"
    return f"{value:.1%}" + (f" ± {error * 100:.1f}" if error is not None else "")


def outcome(results: Sequence[EvalResult]) -> str:
    """Return a table for a terminal, and the gain on a last line if there are two checkpoints or more."""
    sizes = {result.overall.k for result in results}
    k = str(sizes.pop()) if len(sizes) == 1 else "k"
    rows = [("checkpoint", "prompts", "pass@1 ± se", f"cons@{k}", "format", "failed")]
    for result in results:
        found = result.overall
        size = f" (k = {found.k})" if k == "k" and found.cons_at_k is not None else ""
        rows.append(
            (
                result.label,
                f"{found.n_prompts:,}",
                share(found.pass_at_1, found.pass_at_1_se),
                share(found.cons_at_k) + size,
                share(found.format_rate),
                f"{found.failed_samples:,}",
            )
        )
        rows += _parts(result) if len(results) == 1 else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *right]))
    return "\n".join([*lines, *([_gain_line(results[0], results[-1])] if len(results) > 1 else [])])


def _parts(result: EvalResult) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of a lone evaluation's tasks, if it has several, and of levels, subjects and the like."""
    parts = [*(result.tasks if len(result.tasks) > 1 else ()), *result.groups]
    rows = [
        (
            f"  {part.task}",
            f"{part.n_prompts:,}",
            share(part.pass_at_1, part.pass_at_1_se),
            share(part.cons_at_k),
            share(part.format_rate),
            f"{part.failed_samples:,}",
        )
        for part in parts[:MAX_PARTS]
    ]
    left = len(parts) - MAX_PARTS
    return [*rows, (f"  and {left} more, in the report", "", "", "", "", "")] if left > 0 else rows


def _gain_line(first: EvalResult, last: EvalResult) -> str:
    found = gain(first, last)
    title = f"gain of {last.label} over {first.label} in pass@1"
    if found is None:
        return f"{title}: –, one of them has no prompt with a verdict"
    error = "" if found.error is None else f" ± {found.error * 100:.1f}"
    prompts = f"{found.n_paired:,} prompt{'s' if found.n_paired != 1 else ''}"
    how = f"paired over {prompts}" if found.n_paired else "not paired by prompt"
    return f"{title}: {found.points * 100:+.1f}{error} points, {how}"
