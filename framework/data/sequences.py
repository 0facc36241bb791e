"""Sequences for encoders, cut from sentences: one part, or two whose order or neighbourhood is to be judged.

A sequence depends on the seed and its place in training alone. Dimensions: T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from framework.data.sentences import Sentences, stretches
from framework.data.shuffle import shuffled
from framework.errors import UserError
from framework.types import Int32

Layout = Literal["full", "document", "next", "order"]
SINGLE = -1  # the label of a sequence of one part


@dataclass(frozen=True)
class TextSequence:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP] with the label whether B follows A."""

    token_ids: Int32  # [T]
    type_ids: Int32  # [T], 1 in the second part
    label: int  # transformers' of pairs: 0 as in the text, 1 not so; SINGLE
    seed: tuple[int, int]  # of what is drawn for it: (the run's, its place in training)


@dataclass(frozen=True)
class Markers:
    """The tokens around the parts."""

    begin: int  # [CLS], <s>
    end: int  # [SEP], </s>


class TextSequences:
    """All sequences of a split, in an endless shuffled stream.

    full: sentences in a row, across documents (RoBERTa's full sentences). document: the same within one. next: two
    parts of a document, the second in half of the cases another document's (BERT, 1810.04805, section 3.1). order:
    two neighbouring parts, in half of the cases swapped (ALBERT, 1909.11942, section 3.1). Raises UserError if there is
    none.
    """

    def __init__(self, directory: Path, split: str, layout: Layout, longest: int, seed: int, markers: Markers) -> None:
        self._sentences, self._layout, self._seed, self._markers = Sentences(directory, split), layout, seed, markers
        self.vocab_size = self._sentences.vocab_size
        self._room = longest - (3 if layout in ("next", "order") else 2)
        found = stretches(self._sentences, self._room, across=layout == "full")
        kept = [run for run in found if layout != "order" or run[2] > run[1]]  # a swap takes two sentences
        if not kept:
            allowed = "must hold documents of two sentences and more" if layout == "order" else "must hold documents"
            raise UserError(str(directory / split), "no sequence", allowed)
        self._runs = np.asarray(kept, np.int64)

    def __len__(self) -> int:
        return len(self._runs)

    def at(self, place: int) -> TextSequence:
        """The sequence at `place` of training."""
        return self._made(shuffled(self._seed, place, len(self)), place)

    def head(self, count: int) -> list[TextSequence]:
        """At most `count`, in the text's order: for validation."""
        return [self._made(row, row) for row in range(min(count, len(self)))]

    def _made(self, row: int, place: int) -> TextSequence:
        document, first, last = map(int, self._runs[row])
        seed = (self._seed, place)
        if self._layout in ("full", "document"):
            return self._sequence([self._sentences.ids(first, last)[: self._room]], SINGLE, seed)
        rng = np.random.default_rng((*seed, 1))
        cut = int(rng.integers(first, last)) if last > first else first  # A ends with it
        a = self._sentences.ids(first, cut)
        label = int(rng.random() < 0.5) if last > first else 1
        if self._layout == "order":
            parts = [a, self._sentences.ids(cut + 1, last)]
            return self._sequence(_shortened(parts[::-1] if label else parts, self._room), label, seed)
        b = self._other(document, rng) if label else self._sentences.ids(cut + 1, last)
        return self._sequence(_shortened([a, b], self._room), label, seed)

    def _other(self, document: int, rng: np.random.Generator) -> Int32:
        """The end of another document, from a sentence of it on."""
        count = self._sentences.documents
        other = (document + 1 + int(rng.integers(max(count - 1, 1)))) % count
        numbers = self._sentences.sentences_of(other)
        return self._sentences.ids(int(rng.integers(numbers[0], numbers[-1] + 1)), numbers[-1])

    def _sequence(self, parts: list[Int32], label: int, seed: tuple[int, int]) -> TextSequence:
        ids, types = [np.array([self._markers.begin], np.int32)], [np.zeros(1, np.int32)]
        for number, part in enumerate(parts):
            ids += [part, np.array([self._markers.end], np.int32)]
            types.append(np.full(len(part) + 1, number, np.int32))
        return TextSequence(np.concatenate(ids), np.concatenate(types), label, seed)


class CodedTexts:
    """Documents in parts of at most `longest` tokens, each behind its domain's control code (CTRL, 1909.05858).

    `codes`: domain -> token; text of other domains is left out. Raises UserError if nothing is left.
    """

    def __init__(self, directory: Path, split: str, longest: int, seed: int, codes: Mapping[str, int]) -> None:
        self._sentences, self._longest, self._seed, self._codes = Sentences(directory, split), longest, seed, codes
        kept = [run for run in stretches(self._sentences, longest - 1, across=False) if self._code(run[0]) is not None]
        if not kept:
            raise UserError(str(directory / split), "no document", f"must be of a domain: {', '.join(codes)}")
        self._runs = np.asarray(kept, np.int64)

    def __len__(self) -> int:
        return len(self._runs)

    def at(self, place: int) -> Int32:
        """The token ids [T] at `place` of training."""
        return self._made(shuffled(self._seed, place, len(self)))

    def head(self, count: int) -> list[Int32]:
        """At most `count`, in the text's order: for validation."""
        return [self._made(row) for row in range(min(count, len(self)))]

    def _code(self, document: int) -> int | None:
        return self._codes.get(self._sentences.source(document))

    def _made(self, row: int) -> Int32:
        document, first, last = map(int, self._runs[row])
        code, ids = self._code(document), self._sentences.ids(first, last, closed=True)
        return np.concatenate([np.array([code], np.int32), ids[: self._longest - 1]])


def _shortened(parts: list[Int32], room: int) -> list[Int32]:
    """Cut the ends of both so that they fit: the longer gives first."""
    a, b = parts
    keep_a = max(room - len(b), room - room // 2) if len(a) + len(b) > room else len(a)
    keep_a = min(len(a), keep_a)
    return [a[:keep_a], b[: room - keep_a]]
