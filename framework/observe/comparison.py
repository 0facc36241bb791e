"""Several runs on one page: their evaluations side by side, and each metric of a stage as one line a run."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from framework.errors import UserError
from framework.observe.charts import Series, line_chart
from framework.observe.collect import RunFiles, collect
from framework.observe.curves import CURVES, GROUPS, Curves
from framework.observe.gains import share
from framework.observe.stage_table import columns, over_seeds
from framework.observe.verdict import verdict

COMPARISON = "comparison.html"
escape = html.escape


def write_comparison(run_dirs: Sequence[Path]) -> Path:
    """Write `comparison.html` into the first run's directory; raises UserError unless all are runs' directories."""
    runs = {name: collect(run_dir) for name, run_dir in zip(_names(run_dirs), run_dirs, strict=True)}
    title = f"{', '.join(runs)}: compared"
    sections = [f"<h1>{escape(title)}</h1>", _evaluations(runs), _over_runs(runs), _settings(runs), *_charts(runs)]
    page = Template(files("framework.observe").joinpath("report.html").read_text(encoding="utf-8"))
    path = run_dirs[0] / COMPARISON
    try:
        path.write_text(page.substitute(title=escape(title), body="\n".join(sections)), encoding="utf-8")
    except OSError as error:
        raise UserError(str(path), error.strerror, "must be writable, on a disk with space left") from error
    return path


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """The directories' names, or where two are alike their paths."""
    names = [run_dir.resolve().name for run_dir in run_dirs]
    return names if len(set(names)) == len(names) else [str(run_dir) for run_dir in run_dirs]


def _evaluations(runs: Mapping[str, RunFiles]) -> str:
    rows = []
    for name, run in runs.items():
        told = "<br>".join(f'<span class="{f.tone}">{escape(f.text)}</span>' for f in verdict(run))
        last = run.evaluations[-1] if run.evaluations else None
        right = share(last.overall.pass_at_1, last.overall.pass_at_1_se) if last else "–"
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{escape(last.label) if last else '–'}</td><td>{right}</td>"
            f'<td class="text">{told}</td></tr>'
        )
    return (
        '<h2>Outcome</h2><div class="scroll"><table><thead><tr><th>run</th><th>checkpoint</th><th>pass@1</th>'
        f'<th class="left">verdict</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _over_runs(runs: Mapping[str, RunFiles]) -> str:
    """The stage table of what all runs have evaluated: of several seeds the mean, and its error by their spread."""
    by_run = [{result.label: result for result in run.evaluations} for run in runs.values()]
    labels = [label for label in by_run[0] if all(label in results for results in by_run)] if by_run else []
    if len(by_run) < 2 or not labels:
        return ""
    shown = columns([results[label] for results in by_run for label in labels])
    rows = []
    for label in labels:
        cells = [c.shown(*over_seeds(c.of(results[label]) for results in by_run)) for c in shown]
        rows.append(_row(label, cells))
    heads = "".join(f"<th>{escape(column.title)}</th>" for column in shown)
    table = f"<table><thead><tr><th>checkpoint</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = f"Means over {len(by_run)} runs; ± is one standard error by their spread."
    return f'<h2>Checkpoints over all runs</h2><div class="scroll">{table}</div><p class="soft">{note}</p>'


def _settings(runs: Mapping[str, RunFiles]) -> str:
    """Settings in which the runs differ."""
    flat = {name: dict(_flat(run.config)) for name, run in runs.items()}
    keys = sorted({key for values in flat.values() for key in values})
    differing = [key for key in keys if len({str(values.get(key, "–")) for values in flat.values()}) > 1]
    heads = "".join(f"<th>{escape(name)}</th>" for name in flat)
    rows = "".join(_row(key, [str(values.get(key, "–")) for values in flat.values()]) for key in differing)
    table = f"<table><thead><tr><th>setting</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<h2>Settings that differ</h2><div class="scroll">{table}</div>' if differing else ""


def _row(key: str, values: Sequence[str]) -> str:
    return f"<tr><td>{escape(key)}</td>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"


def _flat(value: Any, where: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [item for key, inner in value.items() for item in _flat(inner, f"{where}.{key}" if where else str(key))]
    return [(where, value)]


def _charts(runs: Mapping[str, RunFiles]) -> list[str]:
    stages = list(dict.fromkeys(name for run in runs.values() for name in run.history.stages))
    sections = []
    for stage in reversed(stages):
        found = {name: run.history.stages[stage] for name, run in runs.items() if stage in run.history.stages}
        metrics = sorted({metric for history in found.values() for metric in history.series})
        for group in GROUPS:
            drawn = []
            for curves in [c for c in CURVES if c.group == group]:
                for metric in [m for m in curves.metrics if m in metrics]:
                    lines = [
                        Series(name, list(h.series[metric]), list(h.series[metric].values()))
                        for name, h in found.items()
                        if h.series.get(metric)
                    ]
                    drawn.append(_chart(curves, metric, lines))
            if drawn:
                sections.append(f"<h3>{escape(stage)}: {escape(group)}</h3><div class='grid'>{''.join(drawn)}</div>")
    return sections


def _chart(curves: Curves, metric: str, lines: Sequence[Series]) -> str:
    return line_chart(f"{curves.title}: {metric}", lines, curves.unit, curves.zero, curves.smooth, curves.expect)
