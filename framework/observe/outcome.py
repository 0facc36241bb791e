"""What a run's evaluations came to: a row for each checkpoint, and what the last one gained over the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from framework.observe.effects import effects, told
from framework.observe.gains import gain
from framework.observe.stage_table import PLAIN, Column, columns
from framework.types import EvalResult, EvalTask

MAX_PARTS = 12  # rows under each evaluation


def outcome(results: Sequence[EvalResult]) -> str:
    """Return a table for a terminal, and the gain on a last line if there are two checkpoints or more.

    Of a recipe's checkpoints the last lines say which of the published effects show.
    """
    shown = columns(results)
    titles = [column.title + ("" if column.title.startswith(PLAIN) else " ± se") for column in shown]
    rows = [["checkpoint", "prompts", *titles, "failed"]]
    for result in results:
        rows.append(_row(result.label, result.overall, shown, {part.task: part for part in result.domains}))
        rows += _parts(result, shown) if len(results) == 1 else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *right]))
    last = [_rating_line(result) for result in results if result.rating is not None]
    last += [told(found) for found in effects(results)]
    if not last and len(results) > 1:
        last = [_gain_line(results[0], results[-1])]
    return "\n".join([*lines, *last])


def _row(name: str, task: EvalTask, shown: Sequence[Column], domains: Mapping[str, EvalTask]) -> list[str]:
    cells = []
    for column in shown:
        value, error = column.cell(task, domains)
        plain = column.title.startswith(PLAIN)
        size = f" (k = {task.k})" if column.title == "cons@k" and value is not None else ""
        cells.append(column.shown(value, None if plain else error) + size)
    return [name, f"{task.n_prompts:,}", *cells, f"{task.failed_samples:,}"]


def _parts(result: EvalResult, shown: Sequence[Column]) -> list[list[str]]:
    """Rows of a lone evaluation's tasks, if it has several, and of levels, subjects and the like."""
    parts = [*(result.tasks if len(result.tasks) > 1 else ()), *result.groups]
    rows = [_row(f"  {part.task}", part, shown, {}) for part in parts[:MAX_PARTS]]
    left = len(parts) - MAX_PARTS
    return [*rows, [f"  and {left} more, in the report", *[""] * (len(shown) + 2)]] if left > 0 else rows


def _rating_line(result: EvalResult) -> str:
    assert result.rating is not None
    error = "" if result.rating.error is None else f" ± {result.rating.error:.0f}"
    return (
        f"Codeforces rating of {result.label}: {result.rating.mean:.0f}{error} over {result.rating.n_prompts} contests"
    )


def _gain_line(first: EvalResult, last: EvalResult) -> str:
    found = gain(first, last)
    title = f"gain of {last.label} over {first.label} in pass@1"
    if found is None:
        return f"{title}: –, one of them has no prompt with a verdict"
    error = "" if found.error is None else f" ± {found.error * 100:.1f}"
    prompts = f"{found.n_paired:,} prompt{'s' if found.n_paired != 1 else ''}"
    how = f"paired over {prompts}" if found.n_paired else "not paired by prompt"
    return f"{title}: {found.points * 100:+.1f}{error} points, {how}"
