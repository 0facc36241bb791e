"""Which effects that DeepSeek-R1's papers report show in a run of `job=r1`, and which do not.

Each is a comparison of two of the recipe's checkpoints. It shows if the difference has the published sign and is more
than two standard errors; within two nothing can be said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from framework.observe.gains import gain
from framework.observe.stage_table import vote_error
from framework.types import EvalResult, Measured

PASS, CONS = "pass@1", "cons@k"
SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Effect:
    """What the paper compares: `number` rises from one checkpoint to the other, or with `falls` sinks."""

    title: str
    before: str
    after: str
    number: str  # PASS, CONS (against pass@1 of the same checkpoint) or a reward component
    published: str
    falls: bool = False


# "Nature": DeepSeek-R1 in Nature, Table 2; v1, v2: the versions of arXiv 2501.12948
EFFECTS = (
    Effect("RL alone teaches reasoning", "v3_base", "r1_zero", PASS, "AIME 15.6 → 77.9 (v2, figure 1)"),
    Effect("R1-Zero's majority is better than one answer", "r1_zero", "r1_zero", CONS, "AIME 77.9 → 86.7 (Nature)"),
    Effect("a cold start costs some reasoning", "r1_zero", "dev1", PASS, "AIME 77.9 → 59.0 (Nature)", falls=True),
    Effect("the language reward cures mixing", "r1_zero", "dev2", "language", "v2 eq. 7 and B.6, a figure"),
    Effect("reasoning RL regains it", "dev1", "dev2", PASS, "AIME 59.0 → 74.0 (Nature)"),
    Effect("general data makes more helpful", "dev2", "dev3", "helpful", "AlpacaEval 55.8 → 62.1 (Nature)"),
    Effect("RL with a reward model makes more helpful", "dev3", "r1", "helpful", "AlpacaEval 62.1 → 87.6 (Nature)"),
    Effect("and costs no reasoning", "dev3", "r1", PASS, "AIME 78.1 → 79.8 (Nature)"),
    Effect("distillation beats RL of the student", "qwen_zero", "distill_qwen", PASS, "AIME 47.0 → 72.6 at 32B (v1)"),
)


@dataclass(frozen=True)
class Finding:
    """An effect as the run has it."""

    effect: Effect
    points: float  # a share: 0.1 is ten percentage points
    error: float | None  # one standard error; None: unknown
    shows: Literal["yes", "no", "opposite"]  # no: within the error


def effects(results: Sequence[EvalResult]) -> list[Finding]:
    """Return what the run says of every effect of whose checkpoints it has both, with the number measured.

    Nothing of a run that holds one of the recipe's checkpoints alone.
    """
    by_label = {result.label: result for result in results}
    if not any({effect.before, effect.after} <= by_label.keys() for effect in EFFECTS if effect.before != effect.after):
        return []
    found = ((effect, _difference(effect, by_label)) for effect in EFFECTS)
    return [_finding(effect, *difference) for effect, difference in found if difference is not None]


def told(found: Finding) -> str:
    """Return one line for people."""
    effect, error = found.effect, "" if found.error is None else f" ± {found.error * 100:.1f}"
    said = {"yes": "shows", "no": "not told within the error", "opposite": "the opposite shows"}[found.shows]
    where = effect.after if effect.before == effect.after else f"{effect.before} → {effect.after}"
    return (
        f"{effect.title} ({where}, {effect.number}): {found.points * 100:+.1f}{error} points, {said}; "
        f"published: {effect.published}"
    )


def _difference(effect: Effect, by_label: Mapping[str, EvalResult]) -> tuple[float, float | None] | None:
    before, after = by_label.get(effect.before), by_label.get(effect.after)
    if before is None or after is None:
        return None
    if effect.number == PASS:
        gained = gain(before, after)
        return None if gained is None else (gained.points, gained.error)
    if effect.number == CONS:
        task = after.overall
        if task.cons_at_k is None or task.pass_at_1 is None:
            return None
        return task.cons_at_k - task.pass_at_1, _together(vote_error(task), task.pass_at_1_se)
    first, last = (_scored(result, effect.number) for result in (before, after))
    if first is None or last is None:
        return None
    return last.mean - first.mean, _together(first.error, last.error)


def _scored(result: EvalResult, number: str) -> Measured | None:
    return result.overall.scores.get(number)


def _together(first: float | None, second: float | None) -> float | None:
    """The error of a difference, as of independent numbers: where they are of the same prompts it is less."""
    return None if first is None or second is None else math.hypot(first, second)


def _finding(effect: Effect, points: float, error: float | None) -> Finding:
    sign = -points if effect.falls else points
    sure = error is not None and abs(points) > SURE * error
    return Finding(effect, points, error, ("yes" if sign > 0 else "opposite") if sure else "no")
