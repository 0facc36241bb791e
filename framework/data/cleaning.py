"""Rules of a corpus' cleaning: what is a word, what is a copy, what shares a passage with a held-out prompt.

Words are compared without case: runs of letters and digits, single CJK characters (they carry no blanks), and the
operators before numbers, so that 1+5 is not 1-5; other punctuation is skipped, and with it markup and hyphens. Letters
and their accents are composed first (NFC): the same text is often stored either way.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from framework.bounds import Bound, NonNegativeInt, PositiveInt, Probability, bounded
from framework.data.sources import find_source
from framework.errors import UserError
from framework.types import Prompt

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[^\W{_CJK}]+|[{_CJK}]|(?<![-+*/=<>^])[-+*/=<>^×÷−](?=\s*[\d(])")
_LEAST_WORDS = 3  # of a question that is searched for whole: a shorter one would be found everywhere


@dataclass(frozen=True)
@bounded
class CleanConfig:
    """Which documents go. Decontamination by 10-grams is R1's (v2 section D.1); duplicate thresholds are not
    published.
    """

    exact: bool = True  # all but one of those that differ only in case, white space and how accents are stored
    # Jaccard similarity of word shingles from which all but one go; None: off
    near_threshold: Annotated[float, Bound(least=0.1, most=0.95)] | None = 0.8
    shingle_words: PositiveInt = 5
    permutations: Annotated[int, Bound(least=32, most=4096)] = 128  # an even number
    decontamination_words: NonNegativeInt = 10  # n of the n-grams shared with a held-out prompt; 0: off
    # Prompts that must not be in the text, besides the run's held-out ones: files, globs, folders, hub data sets
    benchmarks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()  # ISO 639-1 codes of those that stay; none: all, and nobody looks
    language_score: Probability = 0.65  # how sure the language must be (FineWeb's)
    # Quality rules for pages of the web (data/text/filters.py); DeepSeek has published none of its own
    c4: bool = False
    gopher: bool = False
    fineweb: bool = False
    scrub: bool = False  # replace e-mail and public IP addresses

    def __post_init__(self) -> None:
        if self.permutations % 2:
            raise UserError("stage.clean.permutations", self.permutations, "must be even")
        self.named_files()

    def named_files(self) -> tuple[Path, ...]:
        """The benchmarks' files: the stage runs again when one of them changes."""
        key = "stage.clean.benchmarks"
        return tuple(file for name in self.benchmarks for file in find_source(name, key, "test").local)


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


def words(text: str) -> list[str]:
    """Words as the module's first lines define them."""
    return _WORD.findall(_folded(text))


def exact_key(text: str) -> tuple[int, int]:
    """Return 128 bits that are equal for texts that differ only in case, white space and how accents are stored."""
    digest = hashlib.blake2b(" ".join(_folded(text).split()).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8]), int.from_bytes(digest[8:])


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
