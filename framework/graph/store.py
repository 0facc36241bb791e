"""One run's directory: which nodes are finished, where their artifacts lie, and whose run it is.

runs/<run>/config.json                      the configuration that the run belongs to
           inputs.json                      digests of files from elsewhere, by size, time and inode
           owner/                           which process works on it (`ownership`)
           artifacts/<node>-<key>/<output>/ one finished artifact each, manifest.json in it
           state/<node>-<key>/              engine state of the stage, to resume from
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from framework.artifacts import MANIFEST, Artifact, Digests, content_hash, file_digests, read_listing, write_manifest
from framework.convert import to_plain
from framework.errors import UserError
from framework.files import clear_way, link_or_copy, remove_tree, write_atomically
from framework.graph.code import code_version, nested
from framework.graph.disk import disk_errors
from framework.graph.nodes import NamesFiles, Node, OutputRef
from framework.graph.ownership import OWNER, Ownership
from framework.graph.settings import ABSENT, differences, setting, settings_of, without

# What a resumed run may change: where results are shown and what the run has to run on.
FREE_KEYS = ("tracking", "cluster", "runs_dir", "plugins", "until", "from_")
INPUTS = "inputs.json"
LENGTH, CODE = "length", "code"  # files of a stage's own directory: steps asked for, and the code that began it
_LENGTH_SETTING = re.compile(r"stage\.[^.]+(\.config)?\.steps")
logger = logging.getLogger("framework.graph")


@dataclass(frozen=True)
class Store:
    """Artifacts of one run on disk. Nothing is created before `claim` or `open_run`."""

    run_dir: Path
    owner: Ownership | None = None  # this process's, where it is to write
    _digests: Digests = field(default_factory=dict, init=False, repr=False, compare=False)  # of inputs from elsewhere

    def check_place(self) -> None:
        """Raise UserError if the directory cannot be made or written, as far as can be seen without trying."""
        where, place = str(self.run_dir), next(p for p in (self.run_dir, *self.run_dir.parents) if os.path.lexists(p))
        allowed = "must be a directory that can be made and written, on a disk: see runs_dir"
        if any(len(os.fsencode(part)) > 255 for part in self.run_dir.parts) or len(os.fsencode(where)) > 3500:
            raise UserError(f"{where[:200]}...", "a name that is too long", allowed)
        if not place.exists():
            raise UserError(str(place), "a link that leads nowhere or in a circle", allowed)
        if not place.is_dir():
            raise UserError(where, f"{place}: a file is in its way", allowed)
        if os.path.realpath(place).split(os.sep)[1] in ("proc", "sys"):
            raise UserError(where, "the kernel's own files", allowed)
        if not os.access(place, os.W_OK | os.X_OK):
            raise UserError(where, "permission denied", allowed)

    def check_owner(self, config: Mapping[str, Any]) -> None:
        """Raise UserError if the directory belongs to a run of another configuration, or to something else."""
        self.check_place()
        file = self.run_dir / "config.json"
        if not self.run_dir.exists():
            return
        if not self.run_dir.is_dir() or (not file.is_file() and self._others_files()):
            raise UserError(str(self.run_dir), "something that is not a run", "choose another run=NAME")
        if not file.is_file():
            return
        try:
            owner = json.loads(file.read_text())
            if not isinstance(owner, dict):
                raise ValueError(f"a {type(owner).__name__}")
        except ValueError as error:
            raise UserError(str(file), f"not JSON: {error}", "choose another run=NAME") from None
        for key, theirs, ours in differences(_owned(owner), _owned(config)):
            longer = _LENGTH_SETTING.fullmatch(key) and isinstance(theirs, int) and isinstance(ours, int)
            if ABSENT in (theirs, ours) or (longer and ours > theirs):  # a setting of other code; a stage extended
                continue
            allowed = f"{self.run_dir} was made with {key}={_shown(theirs)}: give that, or choose another run=NAME"
            raise UserError(key, ours, allowed)

    def open_run(self, config: Mapping[str, Any]) -> None:
        """Create the run directory, or check that it is this configuration's; raises UserError if not writable."""
        self.check_owner(config)
        with disk_errors(self.run_dir):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(self.run_dir / "config.json", json.dumps(config, indent=1))

    @contextmanager
    def claim(self, config: Mapping[str, Any]) -> Iterator[None]:
        """As `open_run`, undone if the block raises: a run that is refused before it starts leaves nothing behind."""
        self.check_owner(config)
        file = self.run_dir / "config.json"
        before = file.read_text() if file.is_file() else None
        created = [place for place in (self.run_dir, *self.run_dir.parents) if not place.exists()]
        try:
            self.open_run(config)
            yield
        except BaseException:
            with suppress(OSError):  # the error that is under way says more
                if before is not None:
                    write_atomically(file, before)
                else:
                    for path in self._others_files():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                for place in created:
                    place.rmdir()
            raise

    def _others_files(self) -> list[Path]:
        """What lies in the directory besides the record of who owns it."""
        return [path for path in self.run_dir.iterdir() if path.name != OWNER]

    def key(self, node: Node, input_hashes: Mapping[str, str], seed: int) -> str:
        """Return the hash of what the node's outputs depend on: its settings, the files they name, inputs, seed.

        The code is not among them: a run survives its code (see `changed_code`). Nor are settings at their defaults, so
        that one more of them changes no key, nor the modules that classes live in.
        """
        return self._hash(node, settings_of(node.stage), input_hashes, seed)

    def _hash(self, node: Node, settings: Any, input_hashes: Mapping[str, str], seed: int) -> str:
        named = sorted({file.absolute() for part in nested(node.stage) for file in _files_of(part)})
        try:
            with self._known_digests() as known:
                files = file_digests(Path("/"), map(str, named), known)
        except OSError as error:
            raise UserError(str(error.filename), error.strerror, "must be a file that can be read") from None
        parts = [settings, files, dict(sorted(input_hashes.items())), seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def outputs(self, node: Node, key: str) -> Any | None:
        """Return the node's finished outputs, or None: it has not run, or what it left is damaged (see `damage`)."""
        directory = self._artifacts(node, key)
        if not directory.is_dir() or self.damage(node, key) is not None:
            return None
        return node.outputs_type(**self._found(node, directory))

    def damage(self, node: Node, key: str) -> UserError | None:
        """Return what is wrong with the node's finished outputs, if anything: a file cut off, changed or gone."""
        directory = self._artifacts(node, key)
        try:
            for artifact in self._found(node, directory).values() if directory.is_dir() else ():
                artifact.manifest()
                artifact.check()
        except UserError as error:
            return error
        return None

    def _found(self, node: Node, directory: Path) -> dict[str, Artifact]:
        return {name: type_(directory / name) for name, type_ in node.output_types.items()}

    def input_hashes(self, inputs: Mapping[str, Artifact]) -> dict[str, str]:
        """Return each input's content hash, from its manifest where it has one."""
        with self._known_digests() as known:
            return {
                name: artifact.manifest().content_hash
                if (artifact.path / MANIFEST).is_file()
                else content_hash(artifact.path, known)[0]
                for name, artifact in inputs.items()
            }

    @contextmanager
    def _known_digests(self) -> Iterator[Digests]:
        """Digests of files from elsewhere, kept with the run: a base of a terabyte is read once, not at each start."""
        file = self.run_dir / INPUTS
        if not self._digests and file.is_file():
            with suppress(ValueError, TypeError, AttributeError):  # a damaged one is made again
                self._digests.update({path: tuple(entry) for path, entry in json.loads(file.read_text()).items()})
        before = len(self._digests), [*self._digests.values()]
        yield self._digests
        if before != (len(self._digests), [*self._digests.values()]) and self.run_dir.is_dir():
            with disk_errors(file):
                write_atomically(file, json.dumps(self._digests, indent=1))

    def work_dir(self, node: Node, input_hashes: Mapping[str, str], seed: int) -> Path:
        """Return the stage's own directory, which survives a kill, and its code.

        A stage whose class names its `length` (a dotted setting, in steps) shares it with its longer selves: what is
        trained of a short one is the beginning of the long one. A shorter one than has been asked for begins anew.
        """
        key, length = self.key(node, input_hashes, seed), getattr(node.stage, "length", "")
        directory = self.run_dir / "state" / f"{node.name}-{key}"
        if length:
            settings, steps = without(settings_of(node.stage), length), setting(node.stage, length)
            shared = self.run_dir / "state" / f"{node.name}-{self._hash(node, settings, input_hashes, seed)}"
            asked = shared / LENGTH
            before = _number_in(asked)
            if before <= steps:
                directory = shared
                if 0 < before < steps:
                    text = "%s: goes on from the last checkpoint of its %d steps, to %d"
                    logger.info(text, node.name, before, steps)
                with disk_errors(directory):
                    directory.mkdir(parents=True, exist_ok=True)
                    write_atomically(asked, str(steps))
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / CODE).is_file():
                write_atomically(directory / CODE, code_version(node.stage))
        return directory

    def discard_work(self, node: Node, key: str) -> None:
        """Remove the own directory of a stage that has finished and needs it no more."""
        if not getattr(node.stage, "keeps_work", True):
            remove_tree(self.run_dir / "state" / f"{node.name}-{key}")

    def changed_code(self, node: Node, key: str, work_dir: Path | None = None) -> str:
        """Say which code made the node's results, or began its `work_dir`, if that is not today's; else ""."""
        artifact = next((self._artifacts(node, key) / name for name in node.output_types), None)
        before, now = "", code_version(node.stage)
        if work_dir is not None:
            before = (work_dir / CODE).read_text(errors="replace")
        elif artifact is not None and (artifact / MANIFEST).is_file() and self.damage(node, key) is None:
            before = Artifact(artifact).manifest().code_version
        return f"{before}, now {now}" if before and before != now else ""

    def set_aside(self, node: Node, key: str, work_dir: Path | None = None) -> None:
        """Give the results of a node, or its `work_dir`, another name: it is to begin anew."""
        place = work_dir or self._artifacts(node, key)
        if place.exists():
            aside = place.with_name(f".before-{place.name}")
            with disk_errors(aside):
                clear_way(aside)
                place.rename(aside)

    def adopt(self, node: Node, key: str) -> Path | None:
        """Take over the results of the same settings and inputs from another run beside this one, if one has them.

        They become this run's own: hard links (copies on another file system), so that either run can be deleted.
        Only whole results of today's code are taken. Returns the other run's directory.
        """
        for place in sorted(self.run_dir.parent.glob(f"*/artifacts/[!.]*-{key}")):
            other = Store(place.parent.parent)
            found = {name: type_(place / name) for name, type_ in node.output_types.items()}
            try:
                whole = all(a.check().manifest().code_version == code_version(node.stage) for a in found.values())
            except UserError:  # damaged, or on its way: made here instead
                continue
            if other.run_dir != self.run_dir and whole:
                building = self.begin(node, key)
                with disk_errors(building):
                    for name in found:
                        shutil.copytree(place / name, building / name, copy_function=_link)
                self._publish(node, key)
                return other.run_dir
        return None

    def begin(self, node: Node, key: str) -> Path:
        """Return a fresh directory to build the outputs in; what a killed run left there is removed."""
        building = self._building(node, key)
        with disk_errors(building):
            clear_way(building)
            building.mkdir(parents=True)
        return building

    def commit(self, node: Node, key: str, outputs: Any, input_hashes: Mapping[str, str]) -> Any:
        """Write the manifests, then rename the whole directory into place; returns the outputs at their final place."""
        building, final = self._building(node, key), self._artifacts(node, key)
        stage = f"{type(node.stage).__module__}.{type(node.stage).__qualname__}"
        with disk_errors(building):
            for item in dataclasses.fields(outputs):
                artifact = getattr(outputs, item.name)
                if artifact.path != building / item.name or not artifact.path.is_dir():
                    raise RuntimeError(f"{stage}: {item.name} must be built in runtime.artifact_dir({item.name!r})")
                artifact.check()
                counts = _counts(artifact.path)
                write_manifest(artifact, stage, to_plain(node.stage), input_hashes, code_version(node.stage), counts)
        self._publish(node, key)
        if (damage := self.damage(node, key)) is not None:
            raise damage
        return node.outputs_type(**self._found(node, final))

    def _publish(self, node: Node, key: str) -> None:
        """Rename what was built into place."""
        building, final = self._building(node, key), self._artifacts(node, key)
        with disk_errors(building):
            if self.owner is not None:
                self.owner.check()
            if final.exists():  # damaged, or this node would not have run
                aside = final.with_name(f".damaged-{final.name}")
                clear_way(aside)
                final.rename(aside)
            building.rename(final)

    def states(self, node: Node) -> set[str]:
        """Names of the directories that the node has worked in, under any key."""
        pattern = rf"{re.escape(node.name)}-[0-9a-f]{{12}}"
        found = {place.name for place in self.run_dir.glob(f"state/{node.name}-*")}
        return {name for name in found if re.fullmatch(pattern, name)}

    def latest(self, node: str, output: str) -> Path | None:
        """Return the newest finished artifact of a node, e.g. for `framework report`."""
        finished = list(self.run_dir.glob(f"artifacts/{node}-*/{output}/{MANIFEST}"))
        return max(finished, key=lambda file: file.stat().st_mtime).parent if finished else None

    def _artifacts(self, node: Node, key: str) -> Path:
        return self.run_dir / "artifacts" / f"{node.name}-{key}"

    def _building(self, node: Node, key: str) -> Path:
        return self.run_dir / "artifacts" / f".building-{node.name}-{key}"


def resolve_inputs(node: Node, finished: Mapping[str, Any]) -> dict[str, Artifact]:
    """Return the artifact behind each edge, given the outputs of the nodes before."""
    return {
        name: getattr(finished[edge.node], edge.output) if isinstance(edge, OutputRef) else edge
        for name, edge in node.edges.items()
    }


def _files_of(value: Any) -> tuple[Path, ...]:
    """The files that a part of a stage's settings names: their content counts, not their names alone."""
    if isinstance(value, Path):
        return (value,) if value.is_file() else ()
    return value.named_files() if isinstance(value, NamesFiles) else ()


def _number_in(file: Path) -> int:
    """The number that a file holds; 0 if there is none. Raises UserError for a file that holds something else."""
    try:
        return int(file.read_text()) if file.is_file() else 0
    except ValueError as error:
        allowed = (
            "must be the steps that were asked for: damaged. Without it the stage goes on as if for the first time"
        )
        raise UserError(str(file), " ".join(str(error).split()), allowed) from None


def _link(source: str, target: str) -> str:
    """Link a file, or copy it where that can't be; a manifest is copied: its age says when this run got it."""
    if Path(source).name == MANIFEST:
        shutil.copyfile(source, target)
    else:
        link_or_copy(Path(source), Path(target))
    return target


def _owned(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in FREE_KEYS}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _counts(directory: Path) -> dict[str, float]:
    """Lines of each jsonl file, those of dropped.jsonl by their reason too: what a person wants to know of a set.

    A set in shards brings its own.
    """
    if noted := read_listing(directory)[1]:
        return {name: float(count) for name, count in noted.items()}
    counts: Counter[str] = Counter()
    for file in sorted(directory.glob("*.jsonl")):
        with file.open("rb") as handle:
            for line in handle:
                counts[file.stem] += 1
                if file.stem == "dropped":
                    counts[f"dropped.{json.loads(line)['reason']}"] += 1
        counts.setdefault(file.stem, 0)
    return {name: float(count) for name, count in counts.items()}
