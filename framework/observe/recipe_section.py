"""The report's part on a recipe's checkpoints: the stage table, which published effects show, the reward models."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence

from framework.actors.awaiting import format_seconds
from framework.observe.collect import RunFiles
from framework.observe.effects import Finding, effects
from framework.observe.gains import share
from framework.observe.stage_table import columns

SHOWN = {"yes": ("gain", "shows"), "no": ("", "not told within the error"), "opposite": ("loss", "the opposite")}
STUDENTS = ("distill_qwen", "qwen_zero")
escape = html.escape


def recipe_section(run: RunFiles) -> str:
    """Return the part, as HTML; empty for a run of two checkpoints whose prompts are all of one domain."""
    results = run.evaluations
    if len(results) < 3 and not any(result.domains for result in results):
        return ""
    parts = [_table(run), _effects(effects(results)), _students(run), _reward_models(run), _hacking(run)]
    return "\n".join(filter(None, parts))


def _table(run: RunFiles) -> str:
    shown = columns(run.evaluations)
    timed = [run.history.stages.get(result.label) for result in run.evaluations]
    heads = "".join(f"<th>{escape(column.title)}</th>" for column in shown)
    heads += "<th>stage took</th>" if any(timed) else ""
    rows = []
    for result, stage in zip(run.evaluations, timed, strict=True):
        cells = [column.shown(*column.of(result)) for column in shown]
        cells += [format_seconds(stage.seconds) if stage is not None else "–"] if any(timed) else []
        told = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(result.label)}</td>{told}</tr>")
    return (
        f'<h2>Checkpoints</h2><div class="scroll"><table class="dense"><thead><tr><th>checkpoint</th>{heads}'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="soft">± is one standard error over held-out prompts. pass@1 and the columns behind it: right by '
        "what judges the prompt's kind; the last columns are mean rewards of the prompts that they score.</p>"
    )


def _effects(found: Sequence[Finding]) -> str:
    rows = []
    for one in found:
        tone, said = SHOWN[one.shows]
        effect, error = one.effect, "" if one.error is None else f" ± {one.error * 100:.1f}"
        where = effect.after if effect.before == effect.after else f"{effect.before} → {effect.after}"
        rows.append(
            f'<tr><td class="left">{escape(effect.title)}</td><td class="left">{escape(where)}</td>'
            f"<td>{escape(effect.number)}</td><td>{one.points * 100:+.1f}{error}</td>"
            f'<td class="{tone}">{said}</td><td class="left">{escape(effect.published)}</td></tr>'
        )
    return (
        '<h3>Published effects</h3><div class="scroll"><table><thead><tr><th class="left">effect</th>'
        '<th class="left">between</th><th>number</th><th>points</th><th>here</th><th class="left">published</th>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        if rows
        else ""
    )


def _students(run: RunFiles) -> str:
    """What both ways to the same student cost, in time of the same machine."""
    stages = [run.history.stages.get(name) for name in STUDENTS]
    if any(stage is None for stage in stages):
        return ""
    told = ", ".join(f"{stage.name} {format_seconds(stage.seconds)}" for stage in stages if stage is not None)
    return f'<p class="soft">The same student by distillation and by RL alone; compute spent: {escape(told)}.</p>'


def _reward_models(run: RunFiles) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{share(accuracy, error)}</td><td>{pairs:,}</td></tr>"
        for name, accuracy, error, pairs in held_out_accuracies(run)
    ]
    return (
        "<h3>Reward models</h3><table><thead><tr><th>model</th><th>accuracy on what was held out</th>"
        f"<th>judged rows held out</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        if rows
        else ""
    )


def held_out_accuracies(run: RunFiles) -> Iterator[tuple[str, float, float | None, int]]:
    """Yield of each reward model its last accuracy on held-out rows, the error and how many there were; 0: unknown."""
    made = {artifact.manifest.content_hash: artifact.manifest for artifact in run.artifacts}
    for artifact in run.artifacts:
        name = artifact.path.parent.name.rpartition("-")[0]
        stage = run.history.stages.get(name)
        series = stage.series.get("validation/accuracy", {}) if stage is not None else {}
        if artifact.manifest.type != "RewardCheckpoint" or not series:
            continue
        accuracy = series[max(series)]
        tokens = made.get(artifact.manifest.inputs.get("shards", ""))
        judged = made.get(tokens.inputs.get("preferences", "")) if tokens is not None else None
        count = int(judged.counts.get("validation", 0)) if judged is not None else 0
        yield name, accuracy, math.sqrt(accuracy * (1 - accuracy) / count) if count else None, count


def _hacking(run: RunFiles) -> str:
    found = reward_hacking(run)
    return f'<p class="soft">{escape(found)}</p>' if found else ""


def reward_hacking(run: RunFiles) -> str:
    """Say whether a preference reward rose while what it stands for sank; empty for a run that cannot tell.

    The reward is that of training, in the steps in which it acted; helpfulness and safety are of held-out requests, by
    what `stage.evaluate_each.reward` judges them, which was not trained against.
    """
    stage, by_label = run.history.stages.get("r1"), {result.label: result for result in run.evaluations}
    if stage is None or not {"dev3", "r1"} <= by_label.keys():
        return ""
    told = []
    for name in ("helpful", "safety"):
        values = list(stage.series.get(f"reward/{name}", {}).values())
        before, after = (by_label[label].overall.scores.get(name) for label in ("dev3", "r1"))
        if len(values) < 2 or before is None or after is None:
            continue
        part = max(1, len(values) // 10)
        first, last = sum(values[:part]) / part, sum(values[-part:]) / part
        error = math.hypot(before.error or 0.0, after.error or 0.0)
        hacked = last > first and before.mean - after.mean > 2 * error
        told.append(
            f"{name}: the reward went from {first:.2f} to {last:.2f} in training, held-out requests from "
            f"{share(before.mean, before.error)} to {share(after.mean, after.error)}, "
            + ("which is reward hacking" if hacked else "no sign of reward hacking")
        )
    return "Preference rewards of r1, by its reward model and by another judge. " + "; ".join(told) if told else ""
