"""Where an artifact comes from: the stages behind it, back to raw text, as the manifests of runs tell.

An input is known by its content, so it is found again in whichever run holds it: the artifact's own, a run beside that
one, or the one that its `base` lies in. What is damaged or gone is said in its place, and the walk goes on elsewhere.
"""

from __future__ import annotations

import fnmatch
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from framework.artifacts import MANIFEST, Artifact, Checkpoint, Manifest, hash_of, read_json
from framework.convert import Resolve
from framework.errors import UserError, did_you_mean
from framework.graph.exports import EXPORTS, find_export
from framework.graph.found import RUNS, find_run, given_path, newest_of
from framework.graph.settings import beyond_defaults
from framework.graph.store import INPUTS

_ALLOWED = "must be an artifact's directory, a run's directory or a run's name"


@dataclass(frozen=True)
class Step:
    """A stage behind an artifact, with those of its outputs that were used."""

    name: str  # of its node
    run_dir: Path | None  # None: it lies in no run
    outputs: Mapping[str, Manifest]  # by the outputs' names
    sources: Mapping[str, str]  # input -> the stage that made it, or where it is from
    files: Mapping[str, str]  # raw files that its settings name -> SHA-256, as its run last read them
    damage: tuple[str, ...]

    @property
    def made(self) -> Manifest:
        """What all outputs have in common: stage, settings, inputs, code."""
        return next(iter(self.outputs.values()))


@dataclass(frozen=True)
class Origin:
    """An end of the walk: what no run made, or what is gone."""

    content: str
    where: str  # for people


@dataclass
class _Shelf:
    """Where artifacts of a content lie: those of some runs, each read when it is first needed."""

    places: dict[str, list[Path]] = field(default_factory=dict)
    read: set[Path] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)  # one line each

    def add_run(self, run_dir: Path) -> None:
        files = sorted(run_dir.glob(f"artifacts/[!.]*/*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
        for file in files if run_dir.resolve() not in self.read else ():
            self.add(file.parent)
        self.read.add(run_dir.resolve())

    def add(self, path: Path) -> None:
        try:
            self.places.setdefault(Artifact(path).manifest().content_hash, []).append(path)
        except UserError as error:
            self.unreadable.append(str(error))

    def add_neighbours(self, run_dir: Path | None, runs_dir: Path) -> None:
        """The runs beside a run, and what its `base` names."""
        config = _json(run_dir / "config.json") if run_dir is not None else {}
        base = str(config.get("base") or "")
        based = find_run(base, runs_dir) if base else None
        if based is None and base:
            based = run_of(Path(base))
            if based is None and (Path(base) / MANIFEST).is_file():
                self.add(Path(base))
        beside = run_dir.resolve().parent if run_dir is not None else runs_dir
        for place in (*([based] if based else ()), *(p.parent for p in sorted(beside.glob("*/artifacts")))):
            self.add_run(place)

    def find(self, content: str, wanted: Mapping[str, str], not_in: frozenset[Path]) -> Path | None:
        """The artifact of a content; of several the first whose stage made most of what else is wanted."""
        found = [path for path in self.places.get(content, ()) if _stage_of(path) not in not_in]
        beside = {
            path: sum(_stage_of(other) == _stage_of(path) for c in wanted.values() for other in self.places.get(c, ()))
            for path in found
        }
        return max(found, key=lambda path: beside[path], default=None)


def find_artifact(name: str, step: int | None = None, runs_dir: Path = RUNS) -> Path:
    """Return the directory that is meant: `name` itself, or a run's last checkpoint, or its export after `step`.

    Damaged ones are taken too. Raises UserError if there is none, or it has no manifest: then no stage made it.
    """
    path = given_path(name)
    run_dir = find_run(name, runs_dir)
    if step is not None:
        if run_dir is None:
            raise UserError("--step", step, f"goes with a run: {name} is none")
        return find_export(run_dir, step).path
    if path.name == MANIFEST and path.is_file():
        path = path.parent
    if (path / MANIFEST).is_file() or (path.parent.name == EXPORTS and path.is_dir()):
        return path
    if run_dir is not None:
        return newest_of(run_dir, damaged_too=True)
    if path.resolve().parent.name == "artifacts" and path.is_dir():
        outputs = sorted(file.parent.name for file in path.glob(f"*/{MANIFEST}"))
        if len(outputs) != 1:
            raise UserError("artifact", name, f"must be one of its outputs: {', '.join(outputs) or 'it has none'}")
        return path / outputs[0]
    if path.is_dir():
        raise UserError("artifact", name, f"has no {MANIFEST}: no run made it. {_ALLOWED}")
    runs = sorted(place.parent.name for place in runs_dir.glob("*/artifacts"))
    known = f"; runs here: {', '.join(runs[:8])}" if runs else ""
    raise UserError("artifact", name, f"{did_you_mean(name, runs)}{_ALLOWED}{known}")


def run_of(artifact: Path) -> Path | None:
    """Return the run that an artifact or an export lies in; None if it lies in none."""
    parents = artifact.absolute().parents
    if len(parents) > 2 and parents[1].name == "artifacts":
        return parents[2]
    return parents[3] if len(parents) > 3 and parents[0].name == EXPORTS and parents[2].name == "state" else None


def walk(artifact: Path, runs_dir: Path = RUNS) -> tuple[Step | Origin, ...]:
    """Return the stages behind an artifact, each after all that used it, its own first.

    Raises UserError if the artifact itself has no manifest that can be read.
    """
    start = _of_export(artifact) if artifact.parent.name == EXPORTS else artifact.absolute()
    used: dict[Path, dict[str, Manifest]] = {}
    sources: dict[Path, dict[str, str]] = {}
    ends: dict[str, Origin] = {}
    order: list[Path | str] = []
    shelf = _Shelf()

    def visit(path: Path, above: frozenset[Path]) -> None:
        stage, manifest = _stage_of(path), Artifact(path).manifest()
        if stage in used:
            used[stage].setdefault(path.name, manifest)
            return
        used[stage], sources[stage] = {path.name: manifest}, {}
        if (run_dir := run_of(path)) is not None:
            shelf.add_run(run_dir)
        above = above | {stage}
        for name, content in manifest.inputs.items():
            found = shelf.find(content, manifest.inputs, above)
            if found is None:
                shelf.add_neighbours(run_dir, runs_dir)
                found = shelf.find(content, manifest.inputs, above)
            if found is not None:
                visit(found, above)
                sources[stage][name] = _name(_stage_of(found))
                continue
            if content not in ends:
                ends[content] = _origin(content, run_dir, shelf.unreadable)
                order.append(content)
            sources[stage][name] = ends[content].where.partition(":")[0]
        order.append(stage)

    visit(start, frozenset())
    first = run_of(start)
    return tuple(
        ends[one] if isinstance(one, str) else _step(one, used[one], sources[one], first) for one in reversed(order)
    )


def describe(artifact: Path, resolve: Resolve, runs_dir: Path = RUNS) -> Iterator[str]:
    """Yield the lines that `framework lineage` prints, the artifact's own stage first.

    `resolve` turns the dotted name of a class into the class, whose defaults are left out.
    """
    steps, first = walk(artifact, runs_dir), run_of(artifact)
    yield f"{artifact}, the last stage first:"
    for step in steps:
        yield ""
        if isinstance(step, Origin):
            yield f"(content {step.content[:12]})"
            yield from _told("origin", step.where)
            continue
        other = step.run_dir is not None and first is not None and step.run_dir.resolve() != first.resolve()
        yield f"{step.name} ({step.made.stage}){f', in run {step.run_dir}' if other else ''}"
        for name, manifest in step.outputs.items():
            yield from _told("output", f"{name}: {manifest.type}, content {manifest.content_hash[:12]}")
            for label, text in counts(manifest):
                yield from _told(label, text)
        yield from _told("code", step.made.code_version)
        inputs = (f"{name}: {content[:12]}, {step.sources[name]}" for name, content in step.made.inputs.items())
        for text in inputs:
            yield from _told("input", text)
        for file, digest in step.files.items():
            yield from _told("file", f"{file}: SHA-256 {digest[:12]}")
        given = (f"{key}={_shown(value)}" for key, value in beyond_defaults(step.made.config, resolve))
        yield from _told("settings", " ".join(given) or "all at their defaults")
        for text in step.damage:
            yield from _told("damaged", text)


def counts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what was kept of a set, and what was dropped and why."""
    why = "dropped."
    kept = {name: n for name, n in manifest.counts.items() if name != "dropped" and not name.startswith(why)}
    if kept:
        yield "kept", ", ".join(f"{name} {n:,.0f}" for name, n in kept.items())
    if "dropped" in manifest.counts:
        reasons = {name.removeprefix(why): n for name, n in manifest.counts.items() if name.startswith(why)}
        text = ", ".join(f"{name} {n:,.0f}" for name, n in sorted(reasons.items(), key=lambda item: -item[1]))
        yield "dropped", f"{manifest.counts['dropped']:,.0f}{': ' if text else ''}{text}"


def _step(stage: Path, outputs: dict[str, Manifest], sources: dict[str, str], first: Path | None) -> Step:
    run_dir = run_of(stage / next(iter(outputs)))
    damage = []
    for name in outputs:
        try:
            Artifact(stage if run_dir is None else stage / name).check()
        except UserError as error:
            damage.append(str(error))
    files = _files(next(iter(outputs.values())), run_dir)
    return Step(_name(stage), run_dir, outputs, sources, files, tuple(damage))


def _origin(content: str, run_dir: Path | None, unreadable: list[str]) -> Origin:
    """What is known of an input that no manifest has."""
    for place, found in _given_directories(run_dir).items():
        if found == content:
            return Origin(content, f"from elsewhere: {place}")
    lost = "".join(f"; cannot be read: {line}" for line in unreadable)
    return Origin(content, f"not found: deleted, in a run that is not beside this one, or from elsewhere{lost}")


def _given_directories(run_dir: Path | None) -> dict[Path, str]:
    """Directories from elsewhere that a run has read -> their content, by the digests that it keeps."""
    known = {Path(file): digest for file, digest in _digests(run_dir).items()}
    places = {place for file in known for place in (file.parent, file.parent.parent)}
    inside = {place: sorted(file for file in known if file.is_relative_to(place)) for place in places}
    return {
        place: hash_of({file.relative_to(place).as_posix(): known[file] for file in files})
        for place, files in inside.items()
    }


def _files(manifest: Manifest, run_dir: Path | None) -> dict[str, str]:
    """The raw files among what the run has read that a stage's settings name: by path, folder or glob."""
    named = [text for text in _texts(manifest.config) if text.strip("./")]

    def is_named(file: str) -> bool:
        patterns = (p for text in named for p in (text, f"*/{text.removeprefix('./')}", f"{text.rstrip('/')}/*"))
        return any(file == p or fnmatch.fnmatchcase(file, p) for p in patterns)

    return {file: digest for file, digest in _digests(run_dir).items() if is_named(file)}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(item)


def _digests(run_dir: Path | None) -> dict[str, str]:
    found = _json(run_dir / INPUTS) if run_dir is not None else {}
    return {file: str(entry[3]) for file, entry in found.items() if isinstance(entry, list) and len(entry) == 4}


def _json(file: Path) -> dict[str, object]:
    """A run's own record; {} if it is missing or torn: it only adds to what manifests say."""
    try:
        return read_json(file)
    except UserError:
        return {}


def _of_export(path: Path) -> Path:
    """The result of the stage that wrote an export: the same settings, and the same inputs, made both."""
    run_dir, node = run_of(path), _name(path.absolute().parents[1])
    finished = [
        file.parent
        for file in (run_dir.glob(f"artifacts/{node}-*/*/{MANIFEST}") if run_dir is not None else ())
        if _name(file.parents[1]) == node and Artifact(file.parent).manifest().type == Checkpoint.__name__
    ]
    if not finished:
        raise UserError("artifact", str(path), f"is of stage {node}, which has not finished: its result will tell")
    return max(finished, key=lambda place: (place.parent.name == path.parents[1].name, place.stat().st_mtime))


def _stage_of(path: Path) -> Path:
    """The directory of all outputs of a stage; of an artifact outside a run its own."""
    return path.parent if run_of(path) is not None else path


def _name(stage: Path) -> str:
    return stage.name.rpartition("-")[0] or stage.name


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, ensure_ascii=False)


def _told(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, 118, initial_indent=f"  {label:9} ", subsequent_indent=" " * 12,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
