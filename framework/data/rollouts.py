"""Scored response groups as files: what GRPO saved while it sampled, and what it trains from without a sampler.

DIR/rollouts.json           whose tokens these are, and how they were sampled
    batch_NNNNNN.parquet    the groups of one batch, a row each, in the order of their tickets

Numbers come back as they were, to the last bit: a training from the files has the losses of the one that wrote them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from framework.artifacts import RolloutSet, read_json
from framework.errors import UserError
from framework.files import write_atomically
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup

HEADER = "rollouts.json"
FILES_HELD = 4
ROW_GROUP_TOKENS = 2_000_000  # that are written at a time: 200 MB of Python's numbers
COLUMNS = (
    "ticket",
    "prompt",  # JSON of a Prompt
    "token_ids",  # [G][R] each, as the next three
    "logprobs",
    "weight_versions",
    "finish_reasons",  # [G], as the rest
    "texts",
    "rewards",
    "components",  # JSON
    "errors",
    "extracted",
)


@dataclass(frozen=True)
class RolloutHeader:
    """What all groups of a directory have in common."""

    vocabulary: int  # tokens
    tokens: str  # digest of the tokenizer's table of tokens
    temperature: float  # of the logprobs
    run: str  # the stage's own directory: another one's groups don't mix with these


@dataclass(frozen=True)
class SavedGroup:
    """One group, and its place in the order in which prompts were visited."""

    ticket: int
    scored: ScoredGroup


@dataclass(frozen=True)
class SavedGroups(Sequence[SavedGroup]):
    """The groups of a directory in the order of their tickets, read when they are asked for.

    The groups of FILES_HELD batches are in memory: batches that overlap in time have tickets in between each other.
    """

    places: Sequence[tuple[Path, int]]  # file and row
    _read: Callable[[Path], list[SavedGroup]] = field(
        default_factory=lambda: lru_cache(FILES_HELD)(lambda file: list(_read(file))), init=False
    )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        file, row = self.places[place]
        return self._read(file)[row]


def header_of(tokenizer: Any, temperature: float, run: Path) -> RolloutHeader:
    """Return the header of groups that are sampled with this tokenizer."""
    table = sorted(tokenizer.get_vocab().items())
    digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
    return RolloutHeader(1 + max(token for _, token in table), digest, temperature, str(run))


def begin_rollouts(directory: Path, header: RolloutHeader, batches: int | None = None) -> None:
    """Make the directory, or go on in it; files of later batches than `batches`, if given, will be made anew.

    Raises UserError if it is another run's, or cannot be written.
    """
    file = directory / HEADER
    if file.is_file() and (found := read_header(directory)) != header:
        allowed = f"holds the responses of {found.run}: choose another directory"
        raise UserError("stage.grpo.save_rollouts", str(directory), allowed)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for old in _files(directory):
            if batches is not None and _number(old) >= batches:
                old.unlink()
        write_atomically(file, json.dumps(asdict(header), indent=1))
    except OSError as error:
        raise _unwritable(directory, error) from None


def write_batch(directory: Path, batch: int, groups: Iterable[SavedGroup]) -> None:
    """Write one batch's groups, whole or not at all, a few at a time: they may come from elsewhere one by one.

    Raises UserError if the disk is full or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = directory / f"batch_{batch:06d}.parquet"
    temporary = directory / f".{file.name}.tmp"
    try:
        with pq.ParquetWriter(temporary, _schema(), compression="zstd") as writer:
            for some in _by_size(groups):
                writer.write_table(pa.table(_columns(some), schema=_schema()))
        temporary.replace(file)
    except OSError as error:
        raise _unwritable(directory, error) from None


def _by_size(groups: Iterable[SavedGroup]) -> Iterator[list[SavedGroup]]:
    """Lists of about ROW_GROUP_TOKENS tokens; one list at least, and a group is never split."""
    some, tokens = list[SavedGroup](), 0
    for group in groups:
        some.append(group)
        tokens += sum(len(response.token_ids) for response in group.scored.group.responses)
        if tokens >= ROW_GROUP_TOKENS:
            yield some
            some, tokens = [], 0
    if some:
        yield some


def read_header(directory: Path) -> RolloutHeader:
    """Return what `begin_rollouts` wrote; raises UserError if it is missing or damaged."""
    file = directory / HEADER
    try:
        return RolloutHeader(**read_json(file))
    except TypeError as error:
        raise UserError(str(file), str(error), "must be what stage.grpo.save_rollouts wrote") from None


def read_rollouts(rollouts: RolloutSet) -> SavedGroups:
    """Read all groups once, and return them; raises UserError naming file and row of what is wrong."""
    files, places = _files(rollouts.path), list[tuple[int, Path, int]]()
    for number, file in enumerate(files):
        if _number(file) != number:
            missing = rollouts.path / f"batch_{number:06d}.parquet"
            raise UserError(str(missing), "no such file", f"batches follow one another, and {file.name} is there")
        places += [(group.ticket, file, row) for row, group in enumerate(_read(file))]
    if not places:
        raise UserError(str(rollouts.path), "no batch_*.parquet", "stage.grpo.save_rollouts writes one a batch")
    places.sort()
    for (before, *_), (after, *_) in pairwise(places):
        if before == after:
            raise UserError(str(rollouts.path), f"ticket {after} twice", "each group is there once")
    return SavedGroups([(file, row) for _, file, row in places])


def _read(file: Path) -> Iterator[SavedGroup]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(str(file), " ".join(str(error).split())[:120], "must be a whole parquet file") from None
    if lacking := [name for name in COLUMNS if name not in table.column_names]:
        allowed = f"has no column {lacking[0]}: stage.grpo.save_rollouts writes {', '.join(COLUMNS)}"
        raise UserError(str(file), ", ".join(table.column_names), allowed)
    try:
        table = table.select(COLUMNS).cast(_schema())
    except (pa.ArrowException, ValueError) as error:
        raise UserError(str(file), " ".join(str(error).split())[:120], "columns as save_rollouts writes them") from None
    for number, row in enumerate(table.to_pylist()):
        try:
            yield _group(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file}: row {number}", " ".join(str(error).split()), "must be a group as saved") from None


def _columns(groups: Sequence[SavedGroup]) -> dict[str, list[Any]]:
    rows = [(group.scored.group.responses, group.scored.scores) for group in groups]
    return {
        "ticket": [group.ticket for group in groups],
        "prompt": [json.dumps(asdict(group.scored.group.prompt)) for group in groups],
        "token_ids": [[response.token_ids.tolist() for response in responses] for responses, _ in rows],
        "logprobs": [[response.logprobs.tolist() for response in responses] for responses, _ in rows],
        "weight_versions": [[response.weight_versions.tolist() for response in responses] for responses, _ in rows],
        "finish_reasons": [[response.finish_reason for response in responses] for responses, _ in rows],
        "texts": [[response.text for response in responses] for responses, _ in rows],
        "rewards": [[score.total for score in scores] for _, scores in rows],
        "components": [[json.dumps(dict(score.components)) for score in scores] for _, scores in rows],
        "errors": [[score.error for score in scores] for _, scores in rows],
        "extracted": [[score.extracted for score in scores] for _, scores in rows],
    }


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "ticket": pa.int64(),
        "prompt": pa.string(),
        "token_ids": pa.list_(pa.list_(pa.int32())),
        "logprobs": pa.list_(pa.list_(pa.float32())),
        "weight_versions": pa.list_(pa.list_(pa.int32())),
        "rewards": pa.list_(pa.float64()),
    }
    return pa.schema([(name, kinds.get(name, pa.list_(pa.string()))) for name in COLUMNS])


def _group(row: dict[str, Any]) -> SavedGroup:
    """One row; raises ValueError, TypeError or KeyError for what is no group."""
    fields = json.loads(row["prompt"])
    for name in ("rewards", "token_ids", "messages"):
        fields[name] = tuple(fields[name])
    prompt = Prompt(**fields)
    if not prompt.token_ids:
        raise ValueError("the prompt has no token_ids")
    responses = []
    sampled = ("token_ids", "logprobs", "weight_versions", "finish_reasons", "texts")
    for ids, logprobs, versions, reason, text in zip(*(row[name] for name in sampled), strict=True):
        if not ids or not len(ids) == len(logprobs) == len(versions):
            raise ValueError(f"a response has {len(ids)} token_ids, {len(logprobs)} logprobs, {len(versions)} versions")
        if reason not in ("stop", "length", "abort"):
            raise ValueError(f"finish reason {reason!r}")
        arrays = np.array(ids, np.int32), np.array(logprobs, np.float32), np.array(versions, np.int32)
        if not np.isfinite(arrays[1]).all():
            raise ValueError("a logprob is not a finite number")
        responses.append(Response(*arrays, reason, text))
    scores = []
    for total, components, error, extracted in zip(
        *(row[name] for name in ("rewards", "components", "errors", "extracted")), strict=True
    ):
        if not np.isfinite(total):
            raise ValueError(f"reward {total}")
        scores.append(RewardScore(total, json.loads(components), error, extracted))
    if len(scores) != len(responses) or len(responses) < 2:
        raise ValueError(f"{len(responses)} responses, {len(scores)} rewards")
    return SavedGroup(row["ticket"], ScoredGroup(ResponseGroup(prompt, tuple(responses)), tuple(scores)))


def _files(directory: Path) -> list[Path]:
    return sorted((f for f in directory.glob("batch_*.parquet") if f.stem[6:].isdigit()), key=_number)


def _number(file: Path) -> int:
    return int(file.stem[6:])


def _unwritable(directory: Path, error: OSError) -> UserError:
    allowed = "must be a directory that can be written, with room"
    return UserError("stage.grpo.save_rollouts", f"{directory}: {error.strerror or error}", allowed)
