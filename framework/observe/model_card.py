"""A checkpoint's model card: what it is, how it was evaluated, and the stages that led to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from framework.artifacts import MANIFEST, Artifact, Manifest, read_json
from framework.observe.outcome import share
from framework.types import EvalResult

_TOLD = ("steps", "prompts_per_step", "group_size", "max_tokens", "epochs", "batch_rows", "k")  # settings of a stage


def model_card(title: str, checkpoint: Path, run_dir: Path | None, evaluations: Sequence[EvalResult]) -> str:
    """Return README.md's text; without a run it knows neither evaluations nor stages."""
    config = read_json(checkpoint / "config.json")
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---"]
    kind, dtype = config.get("model_type", "unknown"), config.get("dtype") or config.get("torch_dtype") or "unknown"
    about = f"A `{kind}` model in {dtype}, a Hugging Face checkpoint: transformers and vLLM load it."
    lines += ["", f"# {title}", "", about]
    if evaluations:
        lines += ["", "## Evaluation", "", *_table(evaluations)]
    if run_dir is not None and (stages := list(lineage(checkpoint, run_dir))):
        lines += ["", "## How it was made", "", "The last stage first:", "", *stages]
    return "\n".join(lines) + "\n"


def lineage(checkpoint: Path, run_dir: Path) -> Iterator[str]:
    """Yield a line for each stage that led to an artifact of a run, the last first."""
    known: dict[str, tuple[str, Manifest]] = {}
    for file in sorted(run_dir.glob(f"artifacts/[!.]*/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime):
        manifest = Artifact(file.parent).manifest()
        known[manifest.content_hash] = file.parents[1].name.rpartition("-")[0], manifest
    if not (checkpoint / MANIFEST).is_file():
        return
    waiting, seen = [Artifact(checkpoint).manifest().content_hash], set[str]()
    while waiting:
        content = waiting.pop(0)
        if content in seen:
            continue
        seen.add(content)
        if content not in known:
            yield f"- from elsewhere: content {content[:12]}"
            continue
        node, manifest = known[content]
        settings = ", ".join(f"{key} {value}" for key, value in _settings(manifest.config).items())
        made = f"- `{node}` ({manifest.stage.rpartition('.')[2]}{', ' + settings if settings else ''})"
        yield f"{made}: content {content[:12]}, code {manifest.code_version[:12]}"
        waiting += list(dict.fromkeys(manifest.inputs.values()))


def card_of(title: str, checkpoint: Path, run_dir: Path | None) -> str:
    """Return the card, with the run's evaluations if there is a run."""
    from framework.observe.collect import collect

    return model_card(title, checkpoint, run_dir, collect(run_dir).evaluations if run_dir is not None else ())


def _settings(config: Mapping[str, object]) -> dict[str, object]:
    inner = config.get("config")
    values = {**config, **inner} if isinstance(inner, Mapping) else config
    return {key: values[key] for key in _TOLD if isinstance(values.get(key), int | float | str)}


def _table(evaluations: Sequence[EvalResult]) -> Iterator[str]:
    yield "| checkpoint | prompts | responses each | pass@1 | 95% interval | cons@k | tokens | sampling |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in evaluations:
        for found, name in ((result.overall, result.label), *((task, f"- {task.task}") for task in result.tasks)):
            interval = found.pass_at_1_interval
            between = f"{share(interval[0])} to {share(interval[1])}" if interval else "–"
            settings = result.sampling.items() if found is result.overall else ()
            how = ", ".join(f"{key} {value:g}" for key, value in settings)
            cells = (name, f"{found.n_prompts:,}", str(found.k), share(found.pass_at_1, found.pass_at_1_se), between)
            yield f"| {' | '.join(cells)} | {share(found.cons_at_k)} | {found.mean_response_tokens:.0f} | {how} |"
