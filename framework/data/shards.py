"""Token shards: documents as one memory-mapped stream of ids, read in rows whose order is fixed by the seed alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from framework.data.shuffle import shuffled
from framework.errors import UserError

META = "meta.json"


@dataclass(frozen=True)
class ShardsMeta:
    """What the shards hold; `tokens` by split."""

    tokens: dict[str, int]
    vocab_size: int
    dtype: str


def token_dtype(vocab_size: int) -> str:
    """Return the narrowest type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def checked_ids(ids: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return ids as an array; raises ValueError for one beyond the vocabulary, which a narrow type would wrap."""
    found = np.asarray(ids, np.int64)
    if found.size and not 0 <= found.min() <= found.max() < vocab_size:
        raise ValueError(f"token ids {found.min()} to {found.max()}, but the vocabulary has {vocab_size}")
    return found


def write_shards(directory: Path, splits: dict[str, Iterable[Sequence[int]]], vocab_size: int) -> ShardsMeta:
    """Write each split's documents, which bring their own begin and end tokens, one after another."""
    dtype = token_dtype(vocab_size)
    tokens = {}
    for split, documents in splits.items():
        with (directory / f"{split}.bin").open("wb") as file:
            written = sum(file.write(checked_ids(ids, vocab_size).astype(dtype).tobytes()) for ids in documents)
        tokens[split] = written // np.dtype(dtype).itemsize
    meta = ShardsMeta(tokens, vocab_size, dtype)
    (directory / META).write_text(json.dumps(asdict(meta)))
    return meta


class TokenRows:
    """Rows of `row_tokens` + 1 ids: inputs and their next tokens. No mask between documents (DeepSeek-V3 section 4.1).

    Raises UserError if a file is missing or damaged, or there is not one whole row.
    """

    def __init__(self, directory: Path, split: str, row_tokens: int, seed: int) -> None:
        file = directory / f"{split}.bin"
        try:
            meta = ShardsMeta(**json.loads((directory / META).read_text()))
            self._ids = np.memmap(file, meta.dtype, "r")
        except (OSError, ValueError, TypeError) as error:
            raise UserError(str(file), str(error), "must be token shards as the framework writes them") from None
        if len(self._ids) != meta.tokens[split]:
            raise UserError(str(file), f"{len(self._ids)} tokens", f"meta.json says {meta.tokens[split]}: damaged")
        self.vocab_size, self.row_tokens, self.seed = meta.vocab_size, row_tokens, seed
        self.n_rows = (len(self._ids) - 1) // row_tokens
        if self.n_rows < 1:
            raise UserError(str(file), f"{len(self._ids)} tokens", f"at least one row of {row_tokens + 1} is needed")

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
        return self._ids[row * self.row_tokens : (row + 1) * self.row_tokens + 1].astype(np.int64)


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
        return torch.from_numpy(np.stack([self.rows.read(self.first + row) for row in chosen]))
