"""Token shards: documents as a memory-mapped stream of ids over many files, read in rows ordered by the seed alone."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from framework.data.shuffle import shuffled
from framework.data.text.shard_files import ShardWriter, shard_name, whole_file
from framework.errors import UserError
from framework.files import write_atomically

if TYPE_CHECKING:  # whoever writes tokens needs no torch, and a worker is up a second sooner
    import torch

META = "meta.json"
_MAPPED = 4096  # files that a process maps at once: Linux allows it 65,530 mappings in all


@dataclass(frozen=True)
class TokenFile:
    """A part of a split's stream."""

    name: str
    tokens: int


@dataclass(frozen=True)
class ShardsMeta:
    """What the shards hold; the stream of a split is its files one after another."""

    splits: Mapping[str, tuple[TokenFile, ...]]
    vocab_size: int
    dtype: str

    def tokens(self, split: str) -> int:
        """Tokens of a split."""
        return sum(file.tokens for file in self.splits[split])


def token_dtype(vocab_size: int) -> str:
    """Return the narrowest type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def checked_ids(ids: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return ids as an array; raises ValueError for one beyond the vocabulary, which a narrow type would wrap."""
    found = np.asarray(ids, np.int64)
    if found.size and not 0 <= found.min() <= found.max() < vocab_size:
        raise ValueError(f"token ids {found.min()} to {found.max()}, but the vocabulary has {vocab_size}")
    return found


def write_tokens(writer: ShardWriter, documents: Iterable[Sequence[int]], vocab_size: int) -> int:
    """Append documents, which bring their own begin and end tokens; returns how many tokens they have."""
    dtype, tokens = token_dtype(vocab_size), 0
    for ids in documents:
        writer.write(checked_ids(ids, vocab_size).astype(dtype).tobytes())
        tokens += len(ids)
    return tokens


def write_shards(directory: Path, splits: Mapping[str, Iterable[Sequence[int]]], vocab_size: int) -> ShardsMeta:
    """Write documents that are at hand as one file a split."""
    files = {}
    for split, documents in splits.items():
        name = shard_name(split, 0, "bin")
        with whole_file(directory / name) as writer:
            files[split] = (TokenFile(name, write_tokens(writer, documents, vocab_size)),)
    return write_meta(directory, files, vocab_size)


def write_meta(directory: Path, splits: Mapping[str, tuple[TokenFile, ...]], vocab_size: int) -> ShardsMeta:
    """Write, last, which files the streams consist of."""
    meta = ShardsMeta(splits, vocab_size, token_dtype(vocab_size))
    write_atomically(directory / META, json.dumps(asdict(meta), indent=1))
    return meta


def read_meta(directory: Path) -> ShardsMeta:
    """Return what `write_meta` wrote; raises UserError if it is missing or damaged."""
    try:
        found = json.loads((directory / META).read_text())
        splits = {split: tuple(TokenFile(**file) for file in files) for split, files in found.pop("splits").items()}
        return ShardsMeta(splits, **found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        allowed = "must be token shards as the framework writes them"
        raise UserError(str(directory / META), str(error), allowed) from None


class TokenRows:
    """Rows of `row_tokens` + 1 ids: inputs and their next tokens. No mask between documents (DeepSeek-V3 section 4.1).

    A row may begin in one file and end in another. Raises UserError if a file is missing or damaged, or there is not
    one whole row.
    """

    def __init__(self, directory: Path, split: str, row_tokens: int, seed: int) -> None:
        meta = read_meta(directory)
        self._directory, self._files, self._dtype = directory, meta.splits[split], meta.dtype
        self._mapped = lru_cache(maxsize=_MAPPED)(_map)
        for part in self._files:
            file = directory / part.name
            size = file.stat().st_size / np.dtype(meta.dtype).itemsize if file.is_file() else None
            if size != part.tokens:
                raise UserError(str(file), f"{size} tokens", f"{META} says {part.tokens}: damaged")
        self._ends = list(accumulate(part.tokens for part in self._files))
        self.vocab_size, self.row_tokens, self.seed = meta.vocab_size, row_tokens, seed
        self.n_rows = (meta.tokens(split) - 1) // row_tokens
        if self.n_rows < 1:
            allowed = f"at least one row of {row_tokens + 1} is needed"
            raise UserError(str(directory / shard_name(split, 0, "bin")), f"{meta.tokens(split)} tokens", allowed)

    def batch(self, first: int, rows: int) -> npt.NDArray[np.int64]:
        """Return rows `first` to `first + rows` of training [B, T + 1]; each epoch has a random order of its own."""
        return np.stack([self.read(place) for place in range(first, first + rows)])

    def read(self, place: int) -> npt.NDArray[np.int64]:
        """Return the row [T + 1] at `place` of training."""
        return self._read(shuffled(self.seed, place, self.n_rows))

    def head(self, rows: int) -> npt.NDArray[np.int64]:
        """Return at most `rows` rows in file order [B, T + 1], for validation."""
        return np.stack([self._read(row) for row in range(min(rows, self.n_rows))])

    def _read(self, row: int) -> npt.NDArray[np.int64]:
        first, end = row * self.row_tokens, (row + 1) * self.row_tokens + 1
        place, parts = bisect_right(self._ends, first), []
        while first < end:
            begins = self._ends[place] - self._files[place].tokens
            ids = self._mapped(self._directory / self._files[place].name, self._dtype)
            parts.append(ids[first - begins : end - begins])
            first, place = self._ends[place], place + 1
        found: npt.NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
        return found


def _map(file: Path, dtype: str) -> npt.NDArray[Any]:
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.empty(0, dtype)


@dataclass(frozen=True)
class RowBatch:
    """Rows `first` to `first + size` of training [B, T + 1], each read when it is asked for: a rank trains on few."""

    rows: TokenRows
    first: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.rows.row_tokens + 1

    def __getitem__(self, chosen: Sequence[int]) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.stack([self.rows.read(self.first + row) for row in chosen]))
