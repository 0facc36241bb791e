"""The report's part on policies that were aligned to a reward model: rewards against the KL that they cost.

A policy that fools its reward model raises the reward that it was trained for, and not what the rule says of it
(over-optimisation, 2210.10760). The best of n answers of the fine-tuned model is drawn beside them: it costs little KL.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from framework.data.general import VIRTUES
from framework.observe.charts import Series, format_number, line_chart
from framework.observe.collect import RunFiles
from framework.observe.gains import share
from framework.observe.metrics import StageHistory
from framework.types import EvalResult, EvalTask, Measured

KL = "kl"  # the component of an evaluation that has a reference
PARTS = 12  # points of a training's line
escape = html.escape


@dataclass(frozen=True)
class Row:
    """One policy, or the best of n answers: KL in nats a response, rewards, and the share of good answers by virtue."""

    label: str
    kl: Measured
    rewards: dict[str, Measured]
    virtues: dict[str, tuple[float, float]]  # with one standard error


def alignment_section(run: RunFiles) -> str:
    """Return the part, as HTML; empty for a run without an evaluation that tells the KL to a reference."""
    rows = alignment_rows(run.evaluations)
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row.rewards))
    virtues = [name for name in VIRTUES if any(name in row.virtues for row in rows)]
    heads = "".join(f"<th>{escape(head)}</th>" for head in ["KL, nats", *(f"reward {n}" for n in names), *virtues])
    body = "".join(_html(row, names, virtues) for row in rows)
    figures = [
        line_chart(
            f"Reward {name} against KL",
            [*_held_out(rows, name), *_on_the_way(run, name)],
            "mean over responses, by hundredths of a nat a response",
            note="where the rule sinks while the reward that is trained for rises, the reward model is fooled",
        )
        for name in names
    ]
    return (
        '<h2>Rewards against KL</h2><div class="scroll"><table class="dense"><thead><tr><th>policy</th>'
        f'{heads}</tr></thead><tbody>{body}</tbody></table></div><p class="soft">Held-out requests, ± one standard '
        "error over them. KL: of a policy's own responses, in nats a response, to the model that it began as; of the "
        "best of n answers log n − (n − 1) / n, which is the most that it can be. Rates: answers that the rule finds "
        'good, by kind of request. Lines "in training" are of the requests that are trained on.</p>'
        f'<div class="grid">{"".join(figures)}</div>'
    )


def alignment_rows(results: Sequence[EvalResult]) -> list[Row]:
    """The fine-tuned model first, then its best of n, then the policies; none where no KL was told."""
    moved = [result for result in results if KL in result.overall.scores]
    if not moved:
        return []
    others = [result for result in results if result not in moved]
    found = list[Row]()
    for result in others:
        found.append(Row(result.label, Measured(0.0, None, 0), dict(result.overall.scores), _virtues(result)))
        for n, scores in result.best_of.items():
            if (count := int(n)) > 1:
                kl = Measured(math.log(count) - (count - 1) / count, None, 0)
                found.append(Row(f"{result.label}, best of {count}", kl, dict(scores), {}))
    for result in moved:
        rewards = {name: value for name, value in result.overall.scores.items() if name != KL}
        found.append(Row(result.label, result.overall.scores[KL], rewards, _virtues(result)))
    return found


def _virtues(result: EvalResult) -> dict[str, tuple[float, float]]:
    """Over the prompts of each virtue's kinds, from the numbers of the tasks."""
    tasks, found = {task.task: task for task in result.tasks}, dict[str, tuple[float, float]]()
    for virtue, kinds in VIRTUES.items():
        known = [_known(tasks[f"general_{kind}"]) for kind in kinds if f"general_{kind}" in tasks]
        counted = [(count, mean, error) for count, mean, error in known if count]
        if total := sum(count for count, _, _ in counted):
            mean = sum(count * value for count, value, _ in counted) / total
            found[virtue] = mean, math.sqrt(sum((count * error) ** 2 for count, _, error in counted)) / total
    return found


def _known(task: EvalTask) -> tuple[int, float, float]:
    count = task.n_judged if task.n_judged >= 0 else task.n_prompts
    return (0, 0.0, 0.0) if task.pass_at_1 is None else (count, task.pass_at_1, task.pass_at_1_se or 0.0)


def _html(row: Row, names: Sequence[str], virtues: Sequence[str]) -> str:
    cells = [_number(row.kl), *(_number(row.rewards.get(name)) for name in names)]
    cells += [share(*row.virtues[name]) if name in row.virtues else "–" for name in virtues]
    return f"<tr><td>{escape(row.label)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _number(value: Measured | None) -> str:
    if value is None:
        return "–"
    error = f' <span class="se">±{format_number(value.error)}</span>' if value.error is not None else ""
    return format_number(value.mean) + error


def _held_out(rows: Sequence[Row], name: str) -> Iterator[Series]:
    """The best of n as one line from the fine-tuned model on, each policy as a line from there to where it came."""
    known = [(row, round(100 * row.kl.mean), row.rewards[name].mean) for row in rows if name in row.rewards]
    begin = [found for found in known if found[0].kl.mean == 0][:1]
    best = begin + [found for found in known if "best of" in found[0].label]
    if len(best) > 1:
        yield Series("best of n", [x for _, x, _ in best], [y for _, _, y in best])
    for found in known:
        if found not in best and (ends := sorted([*begin, found], key=lambda end: end[1])):
            yield Series(found[0].label, [x for _, x, _ in ends], [y for _, _, y in ends])


def _on_the_way(run: RunFiles, name: str) -> Iterator[Series]:
    """Means over a twelfth of each training's batches."""
    for result in run.evaluations:
        stage = run.history.stages.get(result.label)
        kl = kl_of_responses(stage) if stage is not None else {}
        values = stage.series.get(f"reward/{name}", {}) if stage is not None else {}
        points = [(kl[step], value) for step, value in values.items() if step in kl]
        if len(points) > 1:
            parts = [np.mean(part, axis=0) for part in np.array_split(np.array(points), min(PARTS, len(points)))]
            ends = sorted((round(100 * float(x)), float(y)) for x, y in parts)
            yield Series(f"{result.label} in training", [x for x, _ in ends], [y for _, y in ends])


def kl_of_responses(stage: StageHistory) -> dict[int, float]:
    """Step -> KL to the reference in nats a response: as recorded, or a token's times the mean length."""
    if recorded := stage.series.get("kl/sequence"):
        return dict(recorded)
    lengths = stage.series.get("response/length_mean", {})
    return {
        step: value * lengths[step] for step, value in stage.series.get("kl/reference", {}).items() if step in lengths
    }
