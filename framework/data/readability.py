"""Which reasoning people can read: R1's filters of cold-start and rejection samples, each a reason to drop one.

R1 drops reasoning with mixed languages, long paragraphs and code blocks (R1 v2 section B.3.2 and B.3.3), and repetitive
text. Its thresholds are not published: those below are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from framework.bounds import PositiveInt, Probability, bounded
from framework.data.cleaning import words
from framework.data.reasoning import Reasoned
from framework.rewards.language import count_words, main_language

Unreadable = Literal["mixed_language", "long_paragraph", "code_block", "repetition"]
_PARAGRAPHS = re.compile(r"\n\s*\n|\n")
_FENCE = re.compile(r"```|~~~")


@dataclass(frozen=True)
@bounded
class ReadableConfig:
    """Limits of reasoning that stays. A limit at its widest value switches a filter off."""

    least_language: Probability = 0.9  # share of words in the question's language; 0: any
    longest_paragraph: PositiveInt = 4000  # characters between line breaks
    code_blocks: bool = False  # whether fenced code may stand in the reasoning
    repeat_words: PositiveInt = 8  # n of the n-grams that are counted
    most_repeated: Probability = 0.4  # share of n-grams that stood before in the same text; 1: any


def unreadable(found: Reasoned, question: str, config: ReadableConfig) -> Unreadable | None:
    """Return the first reason why people could not read this; None if they can."""
    text = found.reasoning
    if not config.code_blocks and _FENCE.search(text):
        return "code_block"
    if language_share(text, main_language(question)) < config.least_language:
        return "mixed_language"
    if max(map(len, _PARAGRAPHS.split(text))) > config.longest_paragraph:
        return "long_paragraph"
    if repeated_share(words(text), config.repeat_words) > config.most_repeated:
        return "repetition"
    return None


def language_share(text: str, target: str) -> float:
    """Share of the words that are in `target` ("en" or "zh"); 1 without a word: numbers alone are of any language."""
    english, chinese, other = count_words(text)
    total = english + chinese + other
    return (chinese if target == "zh" else english) / total if total else 1.0


def repeated_share(found: Sequence[str], n: int) -> float:
    """Share of the n-grams of these words that stood before; 0 for fewer than n + 1 words."""
    grams = [tuple(found[place : place + n]) for place in range(len(found) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
