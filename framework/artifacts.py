"""What the stages of a job graph exchange: a directory each, finished once its `manifest.json` is there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from framework.errors import UserError
from framework.files import shares

MANIFEST = "manifest.json"
SHARDS = "shards.json"  # of a set in shards: the bytes, digest, counts and sources of each
INDEX = "model.safetensors.index.json"
JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", INDEX),
)
Digests = MutableMapping[str, tuple[int, int, int, str]]  # absolute path -> bytes, mtime in ns, inode, SHA-256


@dataclass(frozen=True)
class Manifest:
    """Provenance of an artifact; written last, so its presence means that the artifact is whole."""

    type: str
    content_hash: str
    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]  # edge name -> content hash
    code_version: str
    files: Mapping[str, int]  # relative path -> bytes
    digests: Mapping[str, str] = field(default_factory=dict)  # relative path -> SHA-256
    counts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FileNote:
    """What is known of a file since it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A directory of one kind of content."""

    path: Path
    required: ClassVar[tuple[str, ...]] = ()  # files without which the directory is not of this kind

    def manifest(self) -> Manifest:
        """Read the manifest; raises UserError if it is missing or not JSON."""
        file = self.path / MANIFEST
        try:
            found = Manifest(**json.loads(file.read_text()))
        except FileNotFoundError:
            raise UserError(str(file), "no such file", "a finished artifact has one") from None
        except OSError as error:
            raise UserError(str(file), error.strerror, "must be a file that can be read") from None
        except (ValueError, TypeError) as error:
            raise UserError(str(file), str(error), "must be a manifest as the framework writes it") from None
        for name in ("config", "inputs", "files", "digests", "counts"):
            if not isinstance(getattr(found, name), dict):
                allowed = "must be a manifest as the framework writes it"
                raise UserError(str(file), f"{name}={getattr(found, name)!r}"[:80], allowed)
        return found

    def check(self) -> Self:
        """Raise UserError if a required file is missing, or any file differs in size from the manifest."""
        for name in self.required:
            if not (self.path / name).is_file():
                raise UserError(str(self.path / name), "no such file", f"a {type(self).__name__} needs {name}")
        if (self.path / MANIFEST).is_file():
            for name, size in self.manifest().files.items():
                file = self.path / name
                found = file.stat().st_size if file.is_file() else None
                if found != size:
                    raise UserError(str(file), f"{found} bytes", f"the manifest says {size} bytes: damaged or changed")
        return self

    def verify(self, rank: int = 0, world: int = 1) -> Self:
        """Read every file that the manifest has a digest of; raises UserError for one that differs in content.

        Given a rank of `world`, only its share of the bytes: all ranks together read everything once.
        """
        if (self.path / MANIFEST).is_file():
            self.check()
            manifest = self.manifest()
            sizes = {name: manifest.files[name] for name in manifest.digests}
            share = shares(sizes, dict.fromkeys(sizes, range(world))).get(rank, ())
            for name, found in file_digests(self.path, share).items():
                if found != (expected := manifest.digests[name]):
                    allowed = f"the manifest says {expected[:12]}: damaged or changed"
                    raise UserError(str(self.path / name), f"SHA-256 {found[:12]}", allowed)
        return self


class TextSet(Artifact):
    """Documents: train-00000.jsonl and on, validation-00000.jsonl and on, a {"id", "text"} a line (see `data.text`)."""

    required = ("train-00000.jsonl",)


class PromptSet(Artifact):
    """Prompts of verifiable tasks: train.jsonl and heldout.jsonl, a `Prompt` a line."""

    required = ("train.jsonl", "heldout.jsonl")


class RolloutSet(Artifact):
    """Scored response groups, a file a batch (see `data.rollouts`)."""

    required = ("rollouts.json",)


class TokenizerDir(Artifact):
    """A Hugging Face fast tokenizer."""

    required = ("tokenizer.json", "tokenizer_config.json")


class TokenShards(Artifact):
    """Token ids for pretraining, memory-mapped."""


class ChatSet(Artifact):
    """Conversations for supervised fine-tuning."""

    required = ("train.jsonl",)


class PreferenceSet(Artifact):
    """Judged answers in the layouts of `data.layouts.preferences`: chosen and rejected ones, or ones with a label."""

    required = ("train.jsonl",)


class Checkpoint(Artifact):
    """Hugging Face safetensors, config and tokenizer: loads in transformers and vLLM as it is."""

    required = ("config.json", "tokenizer.json")

    def check(self) -> Self:
        """As for any artifact; also UserError for cut-off or missing weights, or a tokenizer larger than the model."""
        super().check()
        _check_model(self.path)
        return self


class RewardCheckpoint(Artifact):
    """A reward model: transformers' ...ForSequenceClassification with one label, and its tokenizer."""

    required = ("config.json", "tokenizer.json")

    def check(self) -> Self:
        """As a Checkpoint; also UserError for a model without a scalar head."""
        super().check()
        _check_model(self.path)
        kinds = read_json(self.path / "config.json").get("architectures") or []
        if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
            allowed = "must be a ...ForSequenceClassification: a reward model's"
            raise UserError(str(self.path / "config.json"), f"architectures={kinds}", allowed)
        return self


class EvalReport(Artifact):
    """Results of an evaluation: report.json and samples.jsonl."""

    required = ("report.json",)


class AssessmentReport(Artifact):
    """How a model of the table of transformers does: assessment.json, a `types.Assessed`."""

    required = ("assessment.json",)


def content_hash(directory: Path, known: Digests | None = None) -> tuple[str, dict[str, int], dict[str, str]]:
    """Return the SHA-256 over names and digests of all files but the manifest; each file's size, and its digest.

    What `known` has of a file that has not been touched since is not read again; it learns what is.
    """
    found = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    names = {file.relative_to(directory).as_posix(): file for file in found}
    digests = file_digests(directory, names, known)
    return hash_of(digests), {n: f.stat().st_size for n, f in names.items()}, digests


def hash_of(digests: Mapping[str, str]) -> str:
    """Return the content hash of a directory by the digests of its files, in the order of their paths."""
    lines = "".join(f"{name}\0{digest}\0" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digests(directory: Path, names: Iterable[str], known: Digests | None = None) -> dict[str, str]:
    """Return name -> SHA-256 of files in `directory`, a few at a time: one thread reads 1.6 GiB/s at best."""
    listed = list(names)
    known = {} if known is None else known

    def digest(name: str) -> str:
        file = (directory / name).absolute()
        stat = file.stat()
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if (before := known.get(str(file))) is not None and before[:3] == stamp:
            return before[3]
        found = file_digest(file)
        known[str(file)] = (*stamp, found)
        return found

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(listed, pool.map(digest, listed), strict=True))


def read_listing(directory: Path) -> tuple[dict[str, FileNote], dict[str, int]]:
    """Return the files of a set in shards, name -> bytes and digest, and the counts of all; nothing of another set."""
    file = directory / SHARDS
    if not file.is_file():
        return {}, {}
    found = read_json(file)
    notes = {name: FileNote(**note) for shard in found["shards"] for name, note in shard["files"].items()}
    return notes, found["counts"]


def _noted(directory: Path) -> Digests:
    """Digests that were taken while the shards were written: nobody reads them once more for that."""
    found: Digests = {}
    for name, note in read_listing(directory)[0].items():
        stat = (directory / name).stat()
        if stat.st_size == note.bytes:
            found[str((directory / name).absolute())] = (note.bytes, stat.st_mtime_ns, stat.st_ino, note.sha256)
    return found


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_json_files(directory: Path) -> None:
    """Raise UserError for a file beside a checkpoint's weights that is there, but no JSON object."""
    for name in JSON_FILES:
        if os.path.lexists(directory / name):
            read_json(directory / name)


def shards(directory: Path) -> list[str]:
    """Return the weights' files that a checkpoint's index names, if it has one; UserError for an index that is none."""
    file = directory / INDEX
    if not file.is_file():
        return []
    weight_map = read_json(file).get("weight_map")
    names: list[Any] = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            allowed = "weight_map must say for each tensor which file beside it holds it"
            raise UserError(str(file), name, allowed)
    return sorted(set(names))


def check_safetensors_file(file: Path) -> None:
    """Raise UserError unless a safetensors file is as long as its own header says."""
    if not file.is_file():
        raise UserError(str(file), "no file", "must be a whole safetensors file")
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        try:
            header = json.loads(handle.read(min(length, size)))
            expected = 8 + length + max(t["data_offsets"][1] for n, t in header.items() if n != "__metadata__")
        except (ValueError, AttributeError, KeyError, TypeError):
            raise UserError(str(file), "an unreadable header", "must be a whole safetensors file") from None
    if size != expected:
        raise UserError(str(file), f"{size} bytes", f"its header says {expected} bytes: damaged or cut off")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises UserError if it is missing, damaged or no object."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(str(file), "no such file", "a checkpoint directory has one") from None
    except OSError as error:
        raise UserError(str(file), error.strerror, "must be a file that can be read") from None
    except ValueError as error:
        raise UserError(str(file), " ".join(str(error).split()), "must be JSON: damaged") from None
    if not isinstance(found, dict):
        raise UserError(str(file), type(found).__name__, "must be a JSON object")
    return found


def _check_model(directory: Path) -> None:
    """Raise UserError for cut-off or missing weights, or a tokenizer larger than the model."""
    check_json_files(directory)
    config = read_json(directory / "config.json")
    tokens, vocabulary = _tokenizer_size(directory / "tokenizer.json"), config.get("vocab_size")
    if vocabulary is not None and tokens > vocabulary:
        allowed = f"does not match the model, whose vocab_size is {vocabulary} in {directory / 'config.json'}"
        raise UserError(str(directory / "tokenizer.json"), f"{tokens} tokens", allowed)
    for name in shards(directory):
        if not (directory / name).is_file():
            raise UserError(str(directory / name), "no such file", f"{INDEX} names it")
    for file in sorted(directory.glob("*.safetensors")):
        check_safetensors_file(file)


def _tokenizer_size(file: Path) -> int:
    """One more than the largest token id of a Hugging Face tokenizer.json; 0 if it lists none."""
    found = read_json(file)
    model = found.get("model")
    vocabulary = model.get("vocab", {}) if isinstance(model, dict) else {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return 1 + max([*ids, *(token["id"] for token in found.get("added_tokens", []))], default=-1)


def write_manifest(
    artifact: Artifact,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    code_version: str,
    counts: Mapping[str, float] | None = None,
) -> Manifest:
    """Finish `artifact`: hash its content and write its manifest atomically, last."""
    digest, files, digests = content_hash(artifact.path, _noted(artifact.path))
    manifest = Manifest(
        type(artifact).__name__,
        digest,
        stage,
        dict(config),
        dict(inputs),
        code_version,
        files,
        digests,
        dict(counts or {}),
    )
    temporary = artifact.path / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(asdict(manifest), indent=1, default=str))
    temporary.replace(artifact.path / MANIFEST)
    return manifest
