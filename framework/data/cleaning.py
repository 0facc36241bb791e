"""Cleaning of a corpus: decontamination against held-out prompts, exact and near-duplicate removal, in one pass.

Words are compared without case: runs of letters and digits, single CJK characters (they carry no blanks), and the
operators before numbers, so that 1+5 is not 1-5; other punctuation is skipped, and with it markup and hyphens. Letters
and their accents are composed first (NFC): the same text is often stored either way.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from framework.bounds import Bound, NonNegativeInt, PositiveInt, bounded
from framework.data.readers import Document
from framework.types import Prompt

Reason = Literal["contaminated", "exact_duplicate", "near_duplicate"]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[^\W{_CJK}]+|[{_CJK}]|(?<![-+*/=<>^])[-+*/=<>^×÷−](?=\s*[\d(])")
_LEAST_WORDS = 3  # of a question that is searched for whole: a shorter one would be found everywhere


@dataclass(frozen=True)
@bounded
class CleanConfig:
    """Which documents go. Decontamination by 10-grams is R1's (v2 section D.1); duplicate thresholds are not
    published.
    """

    exact: bool = True  # one of those that differ only in case, white space and how accents are stored
    # Jaccard similarity of word shingles from which the later one goes; None: off
    near_threshold: Annotated[float, Bound(least=0.1, most=0.95)] | None = 0.8
    shingle_words: PositiveInt = 5
    permutations: Annotated[int, Bound(least=32, most=4096)] = 128
    decontamination_words: NonNegativeInt = 10  # n of the n-grams shared with a held-out prompt; 0: off


@dataclass(frozen=True)
class Dropped:
    """Why a document went, and of which kept document or held-out prompt it is a copy."""

    id: str
    reason: Reason
    of: str


class Cleaner:
    """Judges documents in the order in which they come: of duplicates the first stays.

    Memory grows with the documents kept: about 0.2 kB each for exact duplicates and 5.5 kB more for near ones at 128
    permutations (signature and LSH buckets). A corpus beyond memory is cleaned in parts.
    """

    def __init__(self, config: CleanConfig, heldout: Iterable[Prompt] = ()) -> None:
        words = config.decontamination_words
        self._contamination = Contamination(heldout, words) if words else None
        self._exact: dict[bytes, str] | None = {} if config.exact else None
        self._near = None if config.near_threshold is None else NearDuplicates(config, config.near_threshold)

    def judge(self, document: Document) -> Dropped | None:
        """Return why the document goes, or None: it stays, and later ones are compared with it."""
        digest = _digest(document.text)
        if self._exact is not None and digest in self._exact:
            return Dropped(document.id, "exact_duplicate", self._exact[digest])
        found = words(document.text) if self._contamination or self._near else []
        if self._contamination and (prompt := self._contamination.prompt_in(found)) is not None:
            return Dropped(document.id, "contaminated", prompt)
        if self._near and (first := self._near.first_like(document.id, found)) is not None:
            return Dropped(document.id, "near_duplicate", first)
        if self._exact is not None:
            self._exact[digest] = document.id
        return None


class Contamination:
    """Held-out questions and reference answers as n-grams of words.

    A question shorter than n is searched for whole, as consecutive words, if it has at least three. A shorter answer
    is not: a single number stands in any text.
    """

    def __init__(self, heldout: Iterable[Prompt], n: int) -> None:
        self._prompts: dict[tuple[str, ...], str] = {}
        lengths: dict[str, set[int]] = {}  # of the grams that start with a word: most words start none
        for prompt in heldout:
            question, answer = words(prompt.text), words(prompt.answer)
            grams = {tuple(text[i : i + n]) for text in (question, answer) for i in range(len(text) - n + 1)}
            if _LEAST_WORDS <= len(question) < n:
                grams.add(tuple(question))
            for gram in grams:
                self._prompts.setdefault(gram, prompt.id)
                lengths.setdefault(gram[0], set()).add(len(gram))
        self._lengths = {word: sorted(found) for word, found in lengths.items()}

    def prompt_in(self, text: Sequence[str]) -> str | None:
        """Return the id of a held-out prompt that shares a gram with these words, or None."""
        for start, word in enumerate(text):
            for n in self._lengths.get(word, ()):
                if (prompt := self._prompts.get(tuple(text[start : start + n]))) is not None:
                    return prompt
        return None


class NearDuplicates:
    """MinHash LSH over word shingles; what it proposes is compared by all permutations with the threshold."""

    def __init__(self, config: CleanConfig, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self._threshold, self._shingle_words = threshold, config.shingle_words
        # CRC-32 is enough and fast: datasketch mixes hashes before it permutes them
        self._empty = MinHash(config.permutations, seed=1, hashfunc=zlib.crc32)
        # false proposals are found out below, so the bands are chosen to miss little
        self._index = MinHashLSH(threshold, config.permutations, weights=(0.1, 0.9))
        self._kept: list[tuple[str, npt.NDArray[np.uint32]]] = []  # id and signature

    def first_like(self, document_id: str, text: Sequence[str]) -> str | None:
        """Return the id of the first document kept that is like this one; otherwise keep this one and return None."""
        if not text:  # nothing but punctuation: all of those would be alike
            return None
        n = min(self._shingle_words, len(text))
        sketch: Any = self._empty.copy()
        sketch.update_batch({" ".join(text[i : i + n]).encode() for i in range(len(text) - n + 1)})
        signature: npt.NDArray[np.uint32] = sketch.hashvalues
        alike: list[int] = sorted(self._index.query(sketch))
        for place in alike:
            first, other = self._kept[place]
            if (signature == other).mean() >= self._threshold:
                return first
        self._index.insert(len(self._kept), sketch, check_duplication=False)
        self._kept.append((document_id, signature))
        return None


def words(text: str) -> list[str]:
    """Words as the module's first lines define them."""
    return _WORD.findall(_folded(text))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(" ".join(_folded(text).split()).encode(), digest_size=16).digest()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
