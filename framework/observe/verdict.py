"""What a run came to, in sentences: gain, learning, stability, what is not finished. The report opens with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from framework.observe.collect import RunFiles
from framework.observe.effects import effects
from framework.observe.effects import told as effect_told
from framework.observe.gains import gain, share
from framework.observe.metrics import StageHistory

TREND_SHARE = 10  # the first and the last tenth of a stage's steps are compared


@dataclass(frozen=True)
class Finding:
    """One sentence, and how it is to be taken."""

    tone: Literal["good", "bad", "plain"]
    text: str


def verdict(run: RunFiles) -> tuple[Finding, ...]:
    """Return the findings, the most important first; none is a guess: each names its numbers."""
    stages = list(run.history.stages.values())
    found = [*_gain(run), *(f for stage in reversed(stages) for f in _learned(stage))]
    found += [f for stage in reversed(stages) for f in _unsound(stage)]
    return tuple(found) or (Finding("plain", "Nothing has been learned or measured yet."),)


def _gain(run: RunFiles) -> Iterator[Finding]:
    if shown := effects(run.evaluations):
        tones: Mapping[str, Literal["good", "bad", "plain"]] = {"yes": "good", "no": "plain", "opposite": "bad"}
        yield from (Finding(tones[one.shows], effect_told(one)) for one in shown)
        return
    if len(run.evaluations) < 2:
        return
    first, last = run.evaluations[0], run.evaluations[-1]
    before, after = first.overall, last.overall
    found = gain(first, last)
    if found is None:
        yield Finding("bad", f"{first.label} and {last.label} can't be compared: one has no prompt with a verdict.")
        return
    sure = found.error is not None and abs(found.points) > 2 * found.error
    told, points = "better" if found.points > 0 else "worse", found.points * 100
    judged = f"{told} by {abs(points):.1f} points" if sure else f"no different within the error ({points:+.1f})"
    within = "of unknown error" if found.error is None else f"± {2 * found.error * 100:.1f}"
    yield Finding(
        ("good" if points > 0 else "bad") if sure else "plain",
        f"{last.label} answers {share(after.pass_at_1)} of {after.n_prompts:,} held-out prompts right, {first.label} "
        f"{share(before.pass_at_1)}: {judged}, {within}.",
    )


def _learned(stage: StageHistory) -> Iterator[Finding]:
    for metric, name, better in (("reward/mean", "mean reward", 1), ("validation/loss", "validation loss", -1)):
        values = [value for value in stage.series.get(metric, {}).values() if math.isfinite(value)]
        if len(values) < 2:
            continue
        count = max(1, len(values) // TREND_SHARE)
        first, last = sum(values[:count]) / count, sum(values[-count:]) / count
        change = (last - first) * better
        tone: Literal["good", "bad", "plain"] = "good" if change > 0 else "bad" if change < 0 else "plain"
        yield Finding(tone, f"{stage.name}: {name} went from {first:.3f} to {last:.3f}.")


def _unsound(stage: StageHistory) -> Iterator[Finding]:
    if stage.state != "finished":
        reached = f"at step {stage.last_step:,}" if stage.last_step >= 0 else "before its first step"
        yield Finding("bad", f"{stage.name} is {stage.state} {reached}.")
    bad = {name for name, values in stage.series.items() if not all(map(math.isfinite, values.values()))}
    if bad:
        yield Finding("bad", f"{stage.name}: values that are not finite in {', '.join(sorted(bad))}.")
    cut = _last(stage, "response/truncated_share")
    if cut > 0.2:
        yield Finding("bad", f"{stage.name}: {cut:.0%} of the last responses ran into the length limit.")
    idle = _last(stage, "groups/zero_std_share")
    if idle > 0.8:
        yield Finding(
            "bad", f"{stage.name}: {idle:.0%} of the last groups had equal rewards: little was left to learn."
        )


def _last(stage: StageHistory, metric: str) -> float:
    values = [value for value in stage.series.get(metric, {}).values() if math.isfinite(value)]
    tail = values[-max(1, len(values) // TREND_SHARE) :]
    return sum(tail) / len(tail) if tail else 0.0
