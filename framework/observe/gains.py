"""What one checkpoint has gained over another, and how a share is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev

from framework.types import EvalResult


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
