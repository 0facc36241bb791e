"""A checkpoint's model card: what it is, how it was evaluated, and the stages that led to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from framework.artifacts import MANIFEST, read_json
from framework.graph.exports import EXPORTS
from framework.graph.lineage import Origin, counts, walk
from framework.observe.gains import share
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
    told = (checkpoint / MANIFEST).is_file() or checkpoint.parent.name == EXPORTS
    if run_dir is not None and told and (stages := list(lineage(checkpoint))):
        lines += ["", "## How it was made", "", "The last stage first:", "", *stages]
    return "\n".join(lines) + "\n"


def lineage(checkpoint: Path) -> Iterator[str]:
    """Yield a line for each stage that led to a checkpoint of a run, the last first."""
    for step in walk(checkpoint):
        if isinstance(step, Origin):
            yield f"- content {step.content[:12]} {step.where.partition(':')[0]}"
            continue
        made = step.made
        settings = "".join(f", {key} {value}" for key, value in _settings(made.config).items())
        counted = "".join(f"; {label} {text}" for one in step.outputs.values() for label, text in counts(one))
        contents = ", ".join(one.content_hash[:12] for one in step.outputs.values())
        stage = made.stage.rpartition(".")[2]
        yield f"- `{step.name}` ({stage}{settings}): content {contents}, code {made.code_version[:12]}{counted}"


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
