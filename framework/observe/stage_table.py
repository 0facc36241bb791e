"""Checkpoints of a recipe against each other: what each is right in, by domain, and how it writes, with errors.

checkpoint  pass@1 ± se  math ± se   …  cons@16 ± se  format ± se  language ± se  helpful ± se  safety ± se
v3_base     30.1% ± 1.2  …
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from framework.observe.gains import share
from framework.types import EvalResult, EvalTask

PLAIN = ("cons@", "format")  # columns that a terminal shows without their errors
Number = tuple[float | None, float | None]  # a share and its standard error
Cell = Callable[[EvalTask, Mapping[str, EvalTask]], Number]  # of a row and, where it is a checkpoint's, its domains


@dataclass(frozen=True)
class Column:
    """What one column shows of a checkpoint, or of a part of its prompts."""

    title: str
    cell: Cell
    is_share: bool = True  # shown in percent

    def of(self, result: EvalResult) -> Number:
        """Return the number for all prompts of a checkpoint."""
        return self.cell(result.overall, {part.task: part for part in result.domains})

    def shown(self, value: float | None, error: float | None = None) -> str:
        """A number as text: in percent where all of the column are shares, else as it is."""
        if self.is_share or value is None:
            return share(value, error)
        return f"{value:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def columns(results: Sequence[EvalResult]) -> list[Column]:
    """Return the columns that say something of these checkpoints, the order always the same."""
    domains = dict.fromkeys(part.task for result in results for part in result.domains if part.pass_at_1 is not None)
    sizes = {result.overall.k for result in results}
    k = str(sizes.pop()) if len(sizes) == 1 else "k"
    found = [Column("pass@1", lambda task, _: (task.pass_at_1, task.pass_at_1_se))]
    found += [Column(domain, _domain(domain)) for domain in domains]
    found += [Column(f"cons@{k}", lambda task, _: (task.cons_at_k, vote_error(task))), Column("format", _format)]
    judged = {"accuracy", "options", "code", "format"}  # which the columns before these show
    others = dict.fromkeys(name for result in results for name in result.overall.scores if name not in judged)
    measured = {name: [r.overall.scores[name].mean for r in results if name in r.overall.scores] for name in others}
    return found + [Column(name, _score(name), all(0 <= m <= 1 for m in means)) for name, means in measured.items()]


def vote_error(task: EvalTask) -> float | None:
    """One standard error of the share of prompts whose majority is right, over the prompts with a verdict."""
    if task.cons_at_k is None:
        return None
    judged = task.n_judged if task.n_judged > 0 else task.n_prompts
    return math.sqrt(task.cons_at_k * (1 - task.cons_at_k) / judged)


def over_seeds(values: Iterable[Number]) -> Number:
    """Return the mean over runs, and its standard error: that of the runs' spread, of one run its own."""
    known = [(value, error) for value, error in values if value is not None]
    if len(known) < 2:
        return known[0] if known else (None, None)
    mean = sum(value for value, _ in known) / len(known)
    spread = sum((value - mean) ** 2 for value, _ in known) / (len(known) - 1)
    return mean, math.sqrt(spread / len(known))


def _domain(name: str) -> Cell:
    def cell(task: EvalTask, domains: Mapping[str, EvalTask]) -> Number:
        part = domains.get(name)
        return (None, None) if part is None else (part.pass_at_1, part.pass_at_1_se)

    return cell


def _format(task: EvalTask, domains: Mapping[str, EvalTask]) -> Number:
    measured = task.scores.get("format")
    return (task.format_rate, None if measured is None else measured.error)


def _score(name: str) -> Cell:
    def cell(task: EvalTask, domains: Mapping[str, EvalTask]) -> Number:
        measured = task.scores.get(name)
        return (None, None) if measured is None else (measured.mean, measured.error)

    return cell
