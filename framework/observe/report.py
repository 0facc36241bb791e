"""The run's report: one self-contained HTML file that needs no network and no JavaScript."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from framework.actors.awaiting import format_seconds
from framework.errors import UserError
from framework.observe import charts
from framework.observe.alignment_section import alignment_section
from framework.observe.collect import EvalSample, FoundArtifact, RunFiles, collect
from framework.observe.curves import stage_charts
from framework.observe.effects import effects
from framework.observe.gains import gain, share
from framework.observe.metrics import StageHistory
from framework.observe.recipe_section import recipe_section
from framework.observe.side_by_side import side_by_side
from framework.observe.stage_table import vote_error
from framework.observe.text_section import text_section
from framework.observe.verdict import verdict
from framework.types import EvalResult, EvalTask, SampleRow

REPORT = "report.html"
FEW = 3  # checkpoints whose numbers by task stand side by side without being asked for
SAMPLE_STEPS, SAMPLES_PER_STEP, SAMPLE_CHARACTERS, ANSWERS = 8, 8, 3000, 8
escape = html.escape


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html, for a run at any point of its life, and return its path.

    Raises UserError if `run_dir` is not a run's directory or can't be written.
    """
    run = collect(run_dir)
    path = run_dir / REPORT
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(render(run), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(str(path), error.strerror, "must be writable, on a disk with space left") from error
    return path


def render(run: RunFiles) -> str:
    """Return the page."""
    name = run.run_dir.resolve().name
    page = Template(files("framework.observe").joinpath("report.html").read_text(encoding="utf-8"))
    sections = [_header(name, run), _verdict(run), _tiles(run), _notes(run.notes)]
    sections.append(alignment_section(run) or recipe_section(run))
    sections.append(side_by_side(run.assessments, run.history.stages))
    sections += [_evaluation(run.evaluations)] if run.evaluations or not run.assessments else []
    sections.append(_answers(run))
    # Last stage first: it is what people look for.
    stages = list(run.history.stages.values())
    sections += [_stage(stage) for stage in reversed(stages) if _has_recorded(stage)]
    sections.append(_other_stages([stage for stage in stages if not _has_recorded(stage)]))
    sections += [_machine(run), text_section(run), _provenance(run.artifacts, run.run_dir)]
    sections.append(_configuration(run.config))
    return page.substitute(title=escape(f"{name}: training report"), body="\n".join(filter(None, sections)))


def _header(name: str, run: RunFiles) -> str:
    stages = run.history.stages.values()
    values = {key: run.config.get(key) for key in ("job", "model", "cluster", "seed")}
    named = {key: value.get("name") if isinstance(value, dict) else value for key, value in values.items()}
    chosen = [f"{key} {value}" for key, value in named.items() if value is not None]
    if stages:
        first, last = min(s.first_time for s in stages), max(s.last_time for s in stages)
        chosen.append(f"{_clock(first)} to {_clock(last)}")
    return f'<h1>{escape(name)}</h1><p class="soft">{escape(" · ".join(chosen))}</p>'


def _verdict(run: RunFiles) -> str:
    items = "".join(f'<li class="{finding.tone}">{escape(finding.text)}</li>' for finding in verdict(run))
    return f'<ul class="verdict">{items}</ul>'


def _answers(run: RunFiles) -> str:
    """The same held-out prompts as each checkpoint answered them, beside the reference answers."""
    labels = [result.label for result in run.evaluations]
    by_label = {label: {sample.prompt_id: sample for sample in run.answers.get(label, ())} for label in labels}
    known = [by_label[label] for label in labels if by_label[label]]
    if not known:
        return ""
    shared = [key for key in known[-1] if all(key in samples for samples in known)][:ANSWERS]
    heads = "".join(f'<th class="left">{escape(label)}</th>' for label in labels)
    rows = []
    for key in shared:
        cells = "".join(_answer(by_label[label].get(key)) for label in labels)
        sample = known[-1][key]
        asked = f'<td class="text"><pre>{escape(_cut(sample.prompt))}</pre></td>'
        rows.append(f'<tr>{asked}<td class="text"><pre>{escape(_cut(sample.answer))}</pre></td>{cells}</tr>')
    return (
        '<h3>Held-out prompts, first response of each checkpoint</h3><div class="scroll"><table><thead><tr>'
        f'<th>prompt</th><th class="left">reference answer</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _answer(sample: EvalSample | None) -> str:
    if sample is None:
        return "<td>–</td>"
    scores = f'<p class="unit">{escape(_mapping(sample.components))}</p>' if sample.components else ""
    return f'<td class="text"><pre>{escape(_cut(sample.response))}</pre>{scores}</td>'


def _tiles(run: RunFiles) -> str:
    tiles = []
    for result in run.evaluations:
        tiles.append((f"pass@1, {result.label}", share(result.overall.pass_at_1)))
    if len(run.evaluations) > 1 and not effects(run.evaluations):
        last = run.evaluations[-1]
        found = gain(run.evaluations[0], last)
        tiles.append(("gain in pass@1, points", f"{found.points * 100:+.1f}" if found else "–"))
        tiles.append((f"cons@{last.overall.k}, {last.label}", share(last.overall.cons_at_k)))
    stages = run.history.stages.values()
    tiles.append(("time in stages", format_seconds(sum(stage.seconds for stage in stages))))
    rewarded = [stage for stage in stages if stage.series.get("reward/mean")]
    if rewarded:
        tiles.append((f"steps of {rewarded[-1].name}", f"{rewarded[-1].last_step:,}"))
    cells = "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b></div>' for label, value in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes"><ul>{items}</ul></div>' if notes else ""


def _evaluation(results: Sequence[EvalResult]) -> str:
    if not results:
        return "<h2>Evaluation</h2><p>No evaluation has finished yet.</p>"
    names = list(dict.fromkeys(task.task for result in results for task in (*result.tasks, *result.groups)))
    by_name = [{task.task: task for task in (*result.tasks, *result.groups)} for result in results]
    rows: list[tuple[str, list[EvalTask | None]]] = [("all tasks", [result.overall for result in results])]
    rows += [(name, [tasks.get(name) for tasks in by_name]) for name in names]
    labels = [result.label for result in results]
    k = results[-1].overall.k
    overalls = [result.overall for result in results]
    sizes = sorted({size for task in overalls for size in (task.k, *map(int, task.pass_at))} - {1})
    groups = ["pass@1", f"cons@{k}", *(f"pass@{size}" for size in sizes), "format", "tokens", "truncated"]
    heads = "".join(f'<th class="group edge" colspan="{len(labels)}">{escape(group)}</th>' for group in groups)
    gain_head = '<th class="edge" rowspan="2">gain<br>in pass@1</th>' if len(results) > 1 else ""
    subheads = "".join(_edged("th", [escape(label) for label in labels]) for _ in groups)
    failed = "".join(
        f". {result.label}: {result.overall.failed_samples:,} responses could not be scored and count nowhere"
        for result in results
        if result.overall.failed_samples
    )
    sampling = "; ".join(f"{result.label}: {_mapping(result.sampling)}" for result in results if result.sampling)
    body = "".join(_evaluation_row(name, tasks, sizes, i == 0) for i, (name, tasks) in enumerate(rows))
    opened = " open" if len(results) <= FEW else ""
    return (
        f"<h2>Evaluation</h2><details{opened}><summary>by task and level</summary>"
        f'<div class="scroll"><table class="dense"><thead><tr><th rowspan="2">task</th>'
        f'<th rowspan="2">prompts</th>{heads}'
        f"{gain_head}</tr><tr>{subheads}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="soft">Held-out prompts, {k} sampled responses to each. ± is one standard error over prompts, '
        f"with a bootstrapped interval under the pointer. "
        f"cons@{k}: the majority answer is right; pass@n: at least one of n drawn from them is; "
        f"format: share of responses in the demanded format; tokens: mean response length. "
        f"{escape(sampling + failed)}</p>"
        f"<br>{charts.evaluation_chart(rows, labels)}</details>"
    )


def _evaluation_row(name: str, tasks: Sequence[EvalTask | None], sizes: Sequence[int], is_all: bool) -> str:
    cells = [
        [_share(t.pass_at_1, t.pass_at_1_se, t.pass_at_1_interval) if t else "–" for t in tasks],
        [_share(t.cons_at_k, vote_error(t)) if t else "–" for t in tasks],
        *([share(_pass_at(t, size)) if t else "–" for t in tasks] for size in sizes),
        [share(t.format_rate) if t else "–" for t in tasks],
        [charts.format_number(t.mean_response_tokens) if t else "–" for t in tasks],
        [share(t.truncated_share) if t else "–" for t in tasks],
    ]
    prompts = " / ".join(dict.fromkeys(f"{t.n_prompts:,}" for t in tasks if t))
    row = "".join(_edged("td", group) for group in cells) + (_gain_cell(tasks) if len(tasks) > 1 else "")
    return f"<tr{' class=all' if is_all else ''}><td>{escape(name)}</td><td>{prompts}</td>{row}</tr>"


def _gain_cell(tasks: Sequence[EvalTask | None]) -> str:
    known = [task.pass_at_1 for task in tasks if task and task.pass_at_1 is not None]
    if len(known) < len(tasks):
        return '<td class="edge">–</td>'
    points = (known[-1] - known[0]) * 100
    return f'<td class="edge {"gain" if points > 0 else "loss"}">{points:+.1f}</td>'


def _share(value: float | None, error: float | None, interval: Sequence[float] | None = None) -> str:
    tip = f' title="95% of bootstrapped means: {share(interval[0])} to {share(interval[1])}"' if interval else ""
    shown = f' <span class="se"{tip}>±{error * 100:.1f}</span>' if error is not None else ""
    return share(value) + (shown if value is not None else "")


def _pass_at(task: EvalTask, size: int) -> float | None:
    return task.pass_at.get(str(size), task.pass_at_k if size == task.k else None)


def _stage(stage: StageHistory) -> str:
    runs = f", in {stage.starts} runs" if stage.starts > 1 else ""
    steps = f", {stage.last_step:,} step{'s' if stage.last_step != 1 else ''}" if stage.last_step >= 0 else ""
    summary = f"{stage.state}{steps}, {format_seconds(stage.seconds)}{runs}"
    parts = [f'<h2>{escape(stage.name)} <span class="unit">{escape(summary)}</span></h2>']
    drawn = stage_charts(stage)
    for group, figures in drawn.groups:
        parts.append(f'<h3>{escape(group.capitalize())}</h3><div class="grid">{"".join(figures)}</div>')
    if drawn.heat_maps:
        parts.append(
            "<h3>Expert load by layer, relative to an even load "
            '<span class="unit">0×<span class="scale"></span>2× and above</span></h3>'
            f'<div class="grid">{"".join(drawn.heat_maps)}</div>'
        )
    if stage.samples:
        parts.append(_samples(stage.samples))
    return "\n".join(parts)


def _has_recorded(stage: StageHistory) -> bool:
    return bool(stage.series or stage.samples or stage.expert_load)


def _other_stages(stages: Sequence[StageHistory]) -> str:
    """Stages without curves, in one line: how long they took."""
    if not stages:
        return ""
    told = [f"{escape(stage.name)} {stage.state} in {format_seconds(stage.seconds)}" for stage in stages]
    return f'<h2>Other stages</h2><p class="soft">{", ".join(told)}.</p>'


def _samples(samples: Mapping[int, Sequence[SampleRow]]) -> str:
    steps = sorted(samples)
    shown = sorted({steps[round(i * (len(steps) - 1) / (SAMPLE_STEPS - 1))] for i in range(SAMPLE_STEPS)})
    parts = [f"<h3>Sample responses <span class=unit>{len(shown)} of {len(steps)} recorded steps</span></h3>"]
    for step in reversed(shown):
        rows = samples[step]
        names = sorted({name for row in rows for name in row.components})
        heads = "".join(
            f"<th>{escape(head)}</th>" for head in ["reward", *names, "advantage", "tokens", "ended by", "version"]
        )
        body = "".join(_sample_row(row, names) for row in rows[:SAMPLES_PER_STEP])
        note = f", {SAMPLES_PER_STEP} of {len(rows)} responses" if len(rows) > SAMPLES_PER_STEP else ""
        parts.append(
            f"<details{' open' if step == shown[-1] else ''}>"
            f'<summary>step {step}<span class="unit">{note}</span></summary>'
            f'<div class="scroll"><table><thead><tr><th>prompt</th><th class="left">response</th>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div></details>"
        )
    return "".join(parts)


def _sample_row(row: SampleRow, names: Iterable[str]) -> str:
    numbers = [row.reward, *(row.components.get(name) for name in names), row.advantage]
    cells = ["–" if number is None else charts.format_number(number) for number in numbers]
    cells += [f"{row.length:,}", escape(row.finish_reason), str(row.version)]
    texts = "".join(f'<td class="text"><pre>{escape(_cut(text))}</pre></td>' for text in (row.prompt, row.response))
    return f"<tr>{texts}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _machine(run: RunFiles) -> str:
    stages = list(run.history.stages.values())
    if not stages:
        return ""
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in stages[-1].machine.items())
    rows = "".join(
        f"<tr><td>{escape(s.name)}</td><td>{s.state}</td><td>{max(s.last_step, 0):,}</td>"
        f"<td>{format_seconds(s.seconds)}</td><td>{s.starts}</td><td>{_clock(s.first_time)}</td><td>{_clock(s.last_time)}</td></tr>"
        for s in stages
    )
    return (
        "<h2>Time and machine</h2><table><thead><tr><th>stage</th><th>state</th><th>last step</th><th>time</th>"
        f"<th>runs</th><th>first seen</th><th>last seen</th></tr></thead>"
        f'<tbody>{rows}</tbody></table><dl class="facts">{facts}</dl>'
    )


def _provenance(artifacts: Sequence[FoundArtifact], run_dir: Path) -> str:
    if not artifacts:
        return "<h2>Artifacts</h2><p>None has been finished yet.</p>"
    names = {a.manifest.content_hash: a.path.relative_to(run_dir / "artifacts").as_posix() for a in artifacts}
    rows = []
    for artifact in artifacts:
        m = artifact.manifest
        inputs = "<br>".join(
            f'{escape(edge)}: <span title="{escape(digest)}">{escape(names.get(digest, digest[:12]))}</span>'
            for edge, digest in m.inputs.items()
        )
        rows.append(
            f"<tr><td>{escape(names[m.content_hash])}</td><td class=left>{escape(m.type)}</td>"
            f'<td><code title="{escape(m.content_hash)}">{escape(m.content_hash[:12])}</code></td>'
            f'<td class="left">{inputs or "–"}</td><td class="left">{escape(_mapping(m.counts)) or "–"}</td>'
            f"<td>{_size(sum(m.files.values()))}</td><td><code>{escape(m.code_version[:12])}</code></td></tr>"
        )
    return (
        '<h2>Artifacts</h2><div class="scroll"><table><thead><tr><th>artifact</th><th class="left">type</th>'
        '<th>content hash</th><th class="left">made from</th><th class="left">counts</th>'
        "<th>size</th><th>code</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _configuration(config: Mapping[str, object]) -> str:
    if not config:
        return ""
    text = escape(json.dumps(config, indent=2))
    return f'<h2>Configuration</h2><details class="fold"><summary>config.json</summary><pre>{text}</pre></details>'


def _edged(tag: str, cells: Sequence[str]) -> str:
    """Cells of one group; the first carries the line that parts it from the group before."""
    return "".join(f"<{tag}{' class=edge' if i == 0 else ''}>{cell}</{tag}>" for i, cell in enumerate(cells))


def _mapping(values: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {charts.format_number(value)}" for key, value in values.items())


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[:SAMPLE_CHARACTERS]} … ({len(text):,} characters)"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
