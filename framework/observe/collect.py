"""Reads what a run directory holds besides its metrics: artifacts, evaluations, configuration."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts import MANIFEST, Artifact, Manifest
from framework.errors import UserError
from framework.graph.found import places
from framework.observe.metrics import METRICS, RunHistory, read_history
from framework.observe.side_by_side import read_assessment
from framework.types import Assessed, EvalResult, EvalTask, Measured

MAX_ANSWERS = 1000  # lines of samples.jsonl that are read
CONFIG = "config.json"  # the run's whole configuration, as the store writes it


@dataclass(frozen=True)
class FoundArtifact:
    """A finished artifact of the run."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class EvalSample:
    """The first response of a checkpoint to one held-out prompt."""

    prompt_id: str
    prompt: str
    answer: str  # the reference
    response: str
    components: Mapping[str, float]


@dataclass(frozen=True)
class RunFiles:
    """Everything that the report shows."""

    run_dir: Path
    history: RunHistory
    artifacts: Sequence[FoundArtifact]  # oldest first
    evaluations: Sequence[EvalResult]  # in the graph's order (of the same place: as they finished), one for each label
    answers: Mapping[str, Sequence[EvalSample]]  # of each evaluation's label
    config: Mapping[str, Any]
    notes: Sequence[str]  # what is missing, doubtful or damaged, a sentence each
    assessments: Sequence[Assessed] = ()  # of the table of transformers, in the order of their training


def collect(run_dir: Path) -> RunFiles:
    """Read `run_dir`; raises UserError unless it is a directory that a run has written to."""
    if not run_dir.is_dir():
        raise UserError("run", str(run_dir), "no such directory; give a run's own directory, such as runs/<name>")
    if not (run_dir / METRICS).is_file() and not (run_dir / "artifacts").is_dir():
        raise UserError("run", str(run_dir), f"is not a run: it has neither {METRICS} nor artifacts/")
    notes: list[str] = []
    history = read_history(run_dir)
    artifacts = _artifacts(run_dir, notes)
    evaluations, answers = _evaluations(artifacts, notes)
    assessments = _assessments(artifacts, notes)
    _settle(history, artifacts)
    notes += _missing(history, [*evaluations, *assessments])
    return RunFiles(run_dir, history, artifacts, evaluations, answers, _config(run_dir, notes), notes, assessments)


def read_evaluation(path: Path) -> EvalResult:
    """Read an EvalReport's report.json; raises UserError if it is not one."""
    try:
        raw = json.loads(path.read_text())
        return EvalResult(
            label=str(raw["label"]),
            overall=_task(raw["overall"]),
            tasks=tuple(map(_task, raw["tasks"])),
            sampling=raw.get("sampling", {}),
            right_share=raw.get("right_share", {}),
            groups=tuple(map(_task, raw.get("groups", ()))),
            domains=tuple(map(_task, raw.get("domains", ()))),
            rating=Measured(**raw["rating"]) if raw.get("rating") else None,
            best_of={n: _measured(scores) for n, scores in raw.get("best_of", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(str(path), f"{type(error).__name__}: {error}", "must be an evaluation's report.json") from None


def _task(raw: Mapping[str, Any]) -> EvalTask:
    return EvalTask(**{**raw, "scores": _measured(raw.get("scores", {}))})


def _measured(raw: Mapping[str, Any]) -> dict[str, Measured]:
    return {name: Measured(**found) for name, found in raw.items()}


def _artifacts(run_dir: Path, notes: list[str]) -> list[FoundArtifact]:
    found = []
    for directory in sorted(p for p in run_dir.glob("artifacts/*/*") if p.is_dir()):
        if directory.parent.name.startswith("."):  # of a stage that still runs, or damaged and made again since
            continue
        if not (directory / MANIFEST).is_file():
            notes.append(f"{directory.relative_to(run_dir)} is unfinished: it has no {MANIFEST} yet.")
            continue
        try:
            found.append(FoundArtifact(directory, Artifact(directory).manifest()))
        except UserError as error:
            notes.append(f"An artifact is left out: {error}")
    return sorted(found, key=lambda artifact: (artifact.path / MANIFEST).stat().st_mtime)


def _evaluations(
    artifacts: Sequence[FoundArtifact], notes: list[str]
) -> tuple[list[EvalResult], dict[str, list[EvalSample]]]:
    by_label: dict[str, EvalResult] = {}
    reached, place_of = {}, places(artifact.manifest for artifact in artifacts)
    answers: dict[str, list[EvalSample]] = {}
    for artifact in artifacts:
        if artifact.manifest.type != "EvalReport":
            continue
        try:
            result = read_evaluation(artifact.path / "report.json")
        except UserError as error:
            notes.append(f"An evaluation is left out: {error}")
            continue
        if by_label.pop(result.label, None) is not None:
            notes.append(f"There is more than one evaluation of {result.label}: the newest is shown.")
        by_label[result.label], reached[result.label] = result, place_of(artifact.manifest)
        try:
            answers[result.label] = _answers(artifact.path / "samples.jsonl")
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            answers[result.label] = []
            notes.append(f"The answers of {result.label} are left out: {type(error).__name__}: {error}")
    return sorted(by_label.values(), key=lambda result: reached[result.label]), answers


def _assessments(artifacts: Sequence[FoundArtifact], notes: list[str]) -> list[Assessed]:
    found: dict[str, Assessed] = {}
    for artifact in artifacts:
        if artifact.manifest.type == "AssessmentReport":
            try:
                read = read_assessment(artifact.path / "assessment.json")
                found[read.label] = read  # the newest of a label
            except UserError as error:
                notes.append(f"An assessment is left out: {error}")
    return list(found.values())


def _answers(file: Path) -> list[EvalSample]:
    """First responses of an evaluation; lines without any are left out."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as handle:
        rows = [json.loads(line) for line in itertools.islice(handle, MAX_ANSWERS)]
    return [
        EvalSample(
            str(row["prompt_id"]),
            row["prompt"],
            str(row["answer"]),
            row["responses"][0],
            (row["components"] or [{}])[0],
        )
        for row in rows
        if row.get("responses")
    ]


def _settle(history: RunHistory, artifacts: Sequence[FoundArtifact]) -> None:
    """Count a stage as finished if its outputs are, though its process died before it could say so."""
    for artifact in artifacts:
        stage = history.stages.get(artifact.path.parent.name.rpartition("-")[0])  # <stage>-<key>/<output>
        if stage is not None and (artifact.path / MANIFEST).stat().st_mtime >= stage.last_start:
            stage.state = "finished"


def _missing(history: RunHistory, evaluations: Sequence[EvalResult | Assessed]) -> list[str]:
    notes = []
    if not history.stages:
        notes.append("No stage has recorded anything yet.")
    for stage in history.stages.values():
        if stage.state != "finished":
            reached = f"step {stage.last_step}" if stage.last_step >= 0 else "its start"
            notes.append(f"Stage {stage.name} is {stage.state}: it has reached {reached}.")
        bad = sorted(name for name, values in stage.series.items() if not all(map(math.isfinite, values.values())))
        if bad:
            notes.append(f"Stage {stage.name} has values that are not finite: {', '.join(bad)}.")
    if not evaluations:
        notes.append("No evaluation has finished yet.")
    if history.torn_lines:
        notes.append(f"{history.torn_lines} half-written or damaged line(s) are left out.")
    return notes


def _config(run_dir: Path, notes: list[str]) -> Mapping[str, Any]:
    path = run_dir / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        notes.append(f"The run directory holds no {CONFIG}.")
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{CONFIG} is not JSON: {error}.")
        return {}
    return config if isinstance(config, dict) else {}
