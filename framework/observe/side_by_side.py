"""The table of transformers in the report: every pretrained model beside the others."""

from __future__ import annotations

import html
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from framework.errors import UserError
from framework.observe.charts import Series, format_number, line_chart
from framework.observe.gains import share
from framework.observe.metrics import StageHistory
from framework.types import Assessed

escape = html.escape


def read_assessment(file: Path) -> Assessed:
    """Read an AssessmentReport's assessment.json; raises UserError if it is not one."""
    try:
        raw = json.loads(file.read_text())
        return Assessed(**raw | {"tuned": tuple(raw["tuned"]), "fresh": tuple(raw["fresh"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(str(file), f"{type(error).__name__}: {error}", "must be an assessment.json") from None


def side_by_side(found: Sequence[Assessed], stages: Mapping[str, StageHistory]) -> str:
    """A row a model, and their losses in one chart; nothing without models."""
    if not found:
        return ""
    heads = ("model", "learns", "parameters", "tokens/s", "steps", "loss", "predicted right", "pairs right",
             "perplexity", "classifier, pretrained", "classifier, fresh")  # fmt: skip
    rows = "".join(_row(each, stages.get(each.label)) for each in found)
    losses = [
        Series(each.label, list(series), list(series.values()))
        for each in found
        if each.label in stages and (series := stages[each.label].series.get("train/loss"))
    ]
    written = "".join(
        f"<tr><td>{escape(each.label)}</td><td>{escape(prompt)}</td>"
        f'<td class="text"><pre>{escape(text)}</pre></td></tr>'
        for each in found
        for prompt, text in each.written.items()
    )
    heads_of_texts = '<th>model</th><th>begin</th><th class="left">continuation</th>'
    texts = f"<table><thead><tr>{heads_of_texts}</tr></thead><tbody>{written}</tbody></table>" if written else ""
    chart = line_chart("Loss", losses, "as each model's own objective says", note="falls for all; not comparable")
    return (
        '<h2>Transformers side by side</h2><div class="scroll"><table class="dense"><thead><tr>'
        f"{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="soft">Held-out text, measured by each model’s own objective: of masked or permuted tokens the '
        "perplexity is that of the predicted ones. The classifier tells whether neighbouring words of a text are "
        f"swapped: mean accuracy ± its standard deviation over the seeds.</p>{texts}<br>{chart}"
    )


def _row(found: Assessed, stage: StageHistory | None) -> str:
    series = {} if stage is None else stage.series
    losses, speeds = list(series.get("train/loss", {}).values()), list(series.get("train/tokens_per_s", {}).values())
    held_out = found.held_out
    cells = [
        f"{found.parameters:,}",
        format_number(statistics.median(speeds)) if speeds else "–",
        "–" if stage is None or stage.last_step < 0 else f"{stage.last_step:,}",
        f"{losses[0]:.2f} → {losses[-1]:.2f}" if losses else "–",
        share(held_out.get("accuracy")),
        share(held_out.get("pair_accuracy")),
        format_number(held_out["perplexity"]) if "perplexity" in held_out else "–",
        _over_seeds(found.tuned),
        _over_seeds(found.fresh),
    ]
    names = f'<td>{escape(found.label)}</td><td class="left">{escape(found.learns)}</td>'
    return f"<tr>{names}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _over_seeds(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return "–"
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return f'{share(statistics.mean(accuracies))} <span class="se">±{100 * spread:.1f}</span>'
