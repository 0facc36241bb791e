"""The checkpoint that a user means: a directory of one, or a run by its directory or its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts import MANIFEST, Artifact, Checkpoint, Manifest
from framework.errors import UserError, did_you_mean
from framework.graph.exports import find_export

RUNS = Path("runs")  # where a run is looked for by its name


@dataclass(frozen=True)
class FoundCheckpoint:
    """A whole checkpoint, and how it was found."""

    path: Path
    name: str  # of the run, or of the directory: what it is served as
    what: str  # one line for people


def given_path(name: str) -> Path:
    """Return the path that a user gave, whether it is there or not; raises UserError for one that none can be."""
    try:
        path = Path(name).expanduser()
        path.is_dir()
    except (OSError, RuntimeError) as error:  # too long, not to be entered, of a user that is not there
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError("path", name if len(name) <= 200 else f"{name[:200]}...", f"cannot be read: {reason}") from None
    return path


def find_run(name: str, runs_dir: Path = RUNS) -> Path | None:
    """Return the directory of a run that is meant by its own path or its name; None if there is none."""
    for path in (given_path(name), runs_dir / name):
        if (path / "artifacts").is_dir():
            return path
    return None


def find_checkpoint(name: str, step: int | None = None, runs_dir: Path = RUNS) -> FoundCheckpoint:
    """Return a checkpoint directory: `name` itself, or of the run that it names the last, or the export after `step`.

    Raises UserError if there is none, or a file of it is missing or damaged.
    """
    path, run_dir = given_path(name), find_run(name, runs_dir)
    if run_dir is not None and step is not None:
        export = find_export(run_dir, step)
        what = f"stage {export.node} after {step} steps"
        return FoundCheckpoint(Checkpoint(export.path).check().path, f"{run_dir.resolve().name}-{step}", what)
    if step is not None:
        raise UserError("--step", step, f"goes with a run: {name} is none")
    if run_dir is not None:
        found = newest_of(run_dir)
        stage = found.parent.name.rpartition("-")[0]
        return FoundCheckpoint(Checkpoint(found).check().path, run_dir.resolve().name, f"newest, of stage {stage}")
    if not path.is_dir():
        runs = [place.parent.name for place in runs_dir.glob("*/artifacts")]
        known = f"; runs here: {', '.join(sorted(runs)[:8])}" if runs else ""
        allowed = f"{did_you_mean(name, runs)}must be a checkpoint directory, a run's directory or a run's name{known}"
        raise UserError("checkpoint", name, allowed)
    return FoundCheckpoint(Checkpoint(path).check().path, path.resolve().name, "a directory")


def newest_of(run_dir: Path, damaged_too: bool = False, kind: type[Artifact] = Checkpoint) -> Path:
    """Return the last finished checkpoint of a run, the newest of its place, or the last artifact of another `kind`.

    Raises UserError if it has none yet, or a manifest cannot be read; `damaged_too` goes by those that can.
    """
    files = sorted(run_dir.glob(f"artifacts/[!.]*/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
    manifests: dict[Path, Manifest] = {}
    for file in files:
        try:
            manifests[file.parent] = Artifact(file.parent).manifest()
        except UserError:
            if not damaged_too:
                raise
    place = places(manifests.values())
    checkpoints = {path: manifest for path, manifest in manifests.items() if manifest.type == kind.__name__}
    if not checkpoints:
        what = "checkpoint" if kind is Checkpoint else kind.__name__
        raise UserError("checkpoint", str(run_dir), f"this run has no finished {what} yet")
    return sorted(checkpoints, key=lambda path: place(checkpoints[path]))[-1]


def places(manifests: Iterable[Manifest]) -> Callable[[Manifest], int]:
    """Return what says how many stages lead to an artifact, by the manifests of all, the oldest first.

    What is made again keeps its place in the graph, by which results are in order, not by when they were finished.
    """
    sources: dict[str, Mapping[str, str]] = {}
    for manifest in manifests:  # the oldest of a content: what has changed nothing comes after what it began with
        sources.setdefault(manifest.content_hash, manifest.inputs)
    known: dict[str, int] = {}

    def place(content: str) -> int:
        if content not in known:
            known[content] = 0  # of a directory from elsewhere, and of what is its own input
            known[content] = 1 + max(map(place, sources[content].values()), default=0) if content in sources else 0
        return known[content]

    return lambda manifest: 1 + max(map(place, manifest.inputs.values()), default=0)
