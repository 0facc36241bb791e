"""Answers with what was judged of them, as token ids in memory-mapped shards: the data of reward models.

Beside the shards of `data.chats`, whose rows the answers are, judged.npz says which belong to one prompt, which is
better than which, and what label each has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from framework.data.chat_shards import ChatRows, ChatShardsMeta, EncodedChat, write_chat_shards
from framework.data.shuffle import shuffled
from framework.errors import UserError
from framework.types import Int32

JUDGED = "judged.npz"


@dataclass(frozen=True)
class Judged:
    """Answers to one prompt: pairs of them of which the first is better, by a margin; or a label each.

    A question [5 6] answered by 7 and, worse, by 8: rows [5 6 7] [5 6 8], pairs ((0, 1, 0.0),), starts 2 2.
    """

    rows: tuple[Int32, ...]  # [T] each: the prompt, an answer and the token that ends it
    pairs: tuple[tuple[int, int, float], ...] = ()
    labels: tuple[float, ...] = ()
    starts: tuple[int, ...] = ()  # where in its row each answer begins
    reference: tuple[float, ...] = ()  # log-probability of each answer under a reference, in nats

    def with_unrelated(self, other: Judged) -> Judged:
        """Return it with one more row, which nothing was judged of: the prompt, and `other`'s first answer."""
        row = np.concatenate([self.rows[0][: self.starts[0]], other.rows[0][other.starts[0] :]])
        return replace(self, rows=(*self.rows, row), starts=(*self.starts, self.starts[0]))


def write_judged(directory: Path, judged: Iterable[Judged], vocab_size: int) -> ChatShardsMeta:
    """Write the answers' shards, then what was judged of them."""
    ends, pair_ends, pairs, labels = [0], [0], list[tuple[float, float, float]](), list[float]()

    def rows() -> Iterator[EncodedChat]:
        for one in judged:
            starts = one.starts or (0,) * len(one.rows)
            for row, start in zip(one.rows, starts, strict=True):
                yield EncodedChat(row, (np.arange(len(row)) >= start).astype(np.int32))
            ends.append(ends[-1] + len(one.rows))
            pairs.extend(one.pairs)
            pair_ends.append(len(pairs))
            labels.extend(one.labels)

    meta = write_chat_shards(directory, rows(), vocab_size)
    table = np.asarray(pairs, np.float64).reshape(-1, 3)
    np.savez(directory / JUDGED, ends=ends, pair_ends=pair_ends, pairs=table, labels=np.asarray(labels))
    return meta


class JudgedRows:
    """Judged prompts of shards by place in an endless order: each epoch is shuffled anew by the seed alone."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._rows, self.seed = ChatRows(directory, seed), seed
        try:
            with np.load(directory / JUDGED) as arrays:
                self._ends, self._pair_ends = arrays["ends"], arrays["pair_ends"]
                self._pairs, self._labels = arrays["pairs"], arrays["labels"]
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(str(directory / JUDGED), str(error), "must be as the framework writes it") from None
        self.vocab_size, self.prompts = self._rows.meta.vocab_size, len(self._ends) - 1

    def batch(self, first: int, prompts: int) -> list[Judged]:
        """Return the prompts at places `first` to `first + prompts`."""
        return [self.read(self.place(place)) for place in range(first, first + prompts)]

    def place(self, place: int) -> int:
        """Return which prompt of the files comes at a place of the endless order."""
        return shuffled(self.seed, place, self.prompts)

    def read(self, prompt: int) -> Judged:
        """Return a prompt by its place in the files."""
        rows = range(self._ends[prompt], self._ends[prompt + 1])
        pairs = self._pairs[self._pair_ends[prompt] : self._pair_ends[prompt + 1]]
        chats = [self._rows.row(index) for index in rows]
        return Judged(
            tuple(chat.token_ids for chat in chats),
            tuple((int(better), int(worse), float(margin)) for better, worse, margin in pairs),
            tuple(self._labels[rows.start : rows.stop].tolist()) if len(self._labels) else (),
            tuple(int(chat.learned.argmax()) for chat in chats),
        )
