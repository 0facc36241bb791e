"""Language-consistency reward: the share of the reasoning that is in the wanted language."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from framework.rewards.base import Reward
from framework.types import Prompt, Response

_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f\uff21-\uff5a]+(?:['’-][A-Za-z\u00c0-\u024f]+)*")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")
_KANA = re.compile(r"[\u3041-\u3096\u30a1-\u30ff\u31f0-\u31ff]+")
_HAN_OR_KANA = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3005\u3041-\u3096\u30a1-\u30ff\u31f0-\u31ff]+")
_LONGEST_RUN = 2000  # characters
# A letter by itself is a name (x, option B), but for "a" and "I" before a word.
_LETTER = re.compile(
    r"(?<![A-Za-z\u00c0-\u024f'’-])(?!(?:[aA]|I)['’\s]\s?[A-Za-z])[A-Za-z](?![A-Za-z\u00c0-\u024f'’-])"
)
_LETTERS = re.compile(r"[^\W\d_]+")
_URL = re.compile(r"(?:https?://|www\.)[^\s\u3400-\u9fff]+|[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64}")
_TAG = re.compile(r"</?[A-Za-z][\w-]{0,30}(?:\s[^<>\n=]{0,60}=[^<>\n]{0,300})?\s?/?>|&#?\w{2,8};")
_FENCE = re.compile(r"```|~~~")
_PATH = re.compile(r"(?<![\w/])(?:~|\.{1,2})?/[A-Za-z0-9_.-]{1,60}(?:/[A-Za-z0-9_.-]{1,60})+")
# Every span stops at the next of its own openings, so that each character is looked at a bounded number of times.
_MATHS = re.compile(
    r"\$\$[^$]{1,2000}\$\$|\$(?!\s)[^$\n]{1,500}(?<!\s)\$(?!\d)|\\\((?:(?!\\[()]).){1,2000}\\\)"
    r"|\\\[(?:(?!\\[\[\]]).){1,2000}\\\]|\\begin\{(?P<name>\w{1,20})\*?\}(?:(?!\\begin|\\end).){1,2000}\\end\{(?P=name)\*?\}",
    re.DOTALL,
)
_WORDS_IN_MATHS = re.compile(r"\\(?:text\w{0,4}|mbox|emph)\s{0,9}\{([^{}]{0,500})\}")
_COMMAND = re.compile(r"\\[A-Za-z]+\*?(?:\[[^\[\]\n]{0,50}\])?(?:\s?\{[^{}\n]{0,200}\})*(?:[_^]\{?[\w]{1,20}\}?)*")
_CODE = re.compile(r"`[^`\n]{1,500}`")
_SYMBOLS = re.compile(r"[A-Za-z\u00c0-\u024f\u0370-\u03ff]+")  # in mathematics and code: names, no words
_NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*(?:\(\))?")
_NO_WORD = re.compile(r"[\d_]|[a-z][A-Z]|\(\)")  # in a name: my_var, x2, maxTokens, run()


@dataclass(frozen=True, kw_only=True)
class LanguageConsistency(Reward):
    """Words of the target language over all words of the reasoning (R1 eq. 7); not used for R1-Zero.

    The paper's word segmentation is not stated. Here a word's language is its script: a run of Latin letters is one
    English word, a run of Han characters is cut into Chinese words by jieba's dictionary, any other run of letters is
    one foreign word. LaTeX, code, names of code, single letters (x, option B), tags and URLs are no words. Reasoning
    without a word scores 0, so that saying nothing does not pay.
    """

    target: Literal["prompt", "en", "zh"] = "prompt"  # "prompt": the language of the question

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a share in [0, 1]."""
        told = prompt.columns.get("language")  # where the data says it
        asked = str(told) if told in ("en", "zh") else main_language(prompt.text)
        target = asked if self.target == "prompt" else self.target
        english, chinese, other = count_words(reasoning_of(response.text))
        words = english + chinese + other
        return (chinese if target == "zh" else english) / words if words else 0.0

    def prepare(self) -> None:
        """Load the dictionary."""
        if not _segmenter():
            print("language reward: without rjieba each Chinese character counts as a word", file=sys.stderr)
        han_words("词")


def reasoning_of(text: str) -> str:
    """Return the chain of thought: up to `</think>`, without the opening tag (which may be part of the prompt)."""
    return text.split("</think>", 1)[0].removeprefix("<think>")


def count_words(text: str) -> tuple[int, int, int]:
    """Return the number of English, Chinese and other words, told apart by script; see `prose_of` for what is none."""
    text = _LETTER.sub(" ", prose_of(text))
    japanese: list[str] = []
    text = _HAN_OR_KANA.sub(lambda run: _without_japanese(run[0], japanese), text)
    chinese = sum(len(han_words(run)) for run in _HAN.findall(text))
    text = _HAN.sub(" ", text)
    english = len(_LATIN.findall(text))
    letters = _LETTERS.findall(_LATIN.sub(" ", text))
    other = sum(any(map(str.isalpha, word)) for word in letters)  # ², ½ and Ⅳ are numbers
    return english, chinese, other + sum(len(han_words(run)) for run in japanese)


def _without_japanese(run: str, found: list[str]) -> str:
    """A run of Chinese as it is; one of which at least a quarter is kana is Japanese: a blank, and kept in `found`."""
    kana = sum(map(len, _KANA.findall(run)))
    if not kana or kana < len(run) / 4:
        return run
    found.append(run)
    return " "


def han_words(run: str) -> list[str]:
    """Cut a run of Han characters into words, by jieba's dictionary and its model of unknown words."""
    cut = _segmenter()
    return [word for piece in _pieces(run) for word in (cut(piece) if cut else piece)]


def _pieces(run: str) -> Iterator[str]:
    """What is cut at a time: the segmenter's time may grow faster than a text that is one run."""
    return (run[start : start + _LONGEST_RUN] for start in range(0, len(run), _LONGEST_RUN))


@cache
def _segmenter() -> Callable[[str], list[str]] | None:
    try:
        import rjieba
    except ImportError:  # an environment that is older than the lock: `prepare` says so
        return None
    cut: Callable[[str], list[str]] = rjieba.cut
    return cut


def prose_of(text: str) -> str:
    """Return `text` without what is written alike in every language: LaTeX, code, names, tags, URLs.

    Chinese inside mathematics or code stays, so that no language can hide there; so do the words in `\\text{…}`.
    """
    parts = _FENCE.split(text)  # every second one is code, also where the last is not closed
    text = " ".join(_SYMBOLS.sub(" ", part) if place % 2 else part for place, part in enumerate(parts))
    text = _PATH.sub(" ", _URL.sub(" ", _TAG.sub(" ", text)))
    text = _MATHS.sub(lambda span: _without_symbols(span[0]), text)
    text = _CODE.sub(lambda span: _SYMBOLS.sub(" ", span[0]), text)
    text = _WORDS_IN_MATHS.sub(r" \1 ", text)
    text = _COMMAND.sub(lambda command: _SYMBOLS.sub(" ", command[0]), text)
    return _NAME.sub(lambda name: " " if _NO_WORD.search(name[0]) else name[0], text)


def _without_symbols(span: str) -> str:
    words = " ".join(match[1] for match in _WORDS_IN_MATHS.finditer(span))
    return f" {_SYMBOLS.sub(' ', _WORDS_IN_MATHS.sub(' ', span))} {words} "


def main_language(text: str) -> str:
    """Return "zh" if `text` has more Chinese than English words, else "en"."""
    english, chinese, _ = count_words(text)
    return "zh" if chinese > english else "en"
