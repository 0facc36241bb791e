"""Language-consistency reward: the share of the reasoning that is in the wanted language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from framework.rewards.base import Reward
from framework.types import Prompt, Response

_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]+(?:['’-][A-Za-z\u00c0-\u024f]+)*")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LETTERS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, kw_only=True)
class LanguageConsistency(Reward):
    """Words of the target language over all words of the reasoning (R1 eq. 7); not used for R1-Zero.

    The paper's word segmentation is not stated. Here a word's language is its script: a run of Latin letters is one
    English word, a Han character one Chinese word, any other run of letters one foreign word. Reasoning without a word
    scores 0, so that saying nothing does not pay.
    """

    target: Literal["prompt", "en", "zh"] = "prompt"  # "prompt": the language of the question

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a share in [0, 1]."""
        target = main_language(prompt.text) if self.target == "prompt" else self.target
        english, chinese, other = count_words(reasoning_of(response.text))
        words = english + chinese + other
        return (chinese if target == "zh" else english) / words if words else 0.0


def reasoning_of(text: str) -> str:
    """Return the chain of thought: up to `</think>`, without the opening tag (which may be part of the prompt)."""
    return text.split("</think>", 1)[0].removeprefix("<think>")


def count_words(text: str) -> tuple[int, int, int]:
    """Return the number of English, Chinese and other words, told apart by script."""
    chinese = len(_HAN.findall(text))
    text = _HAN.sub(" ", text)
    english = len(_LATIN.findall(text))
    return english, chinese, len(_LETTERS.findall(_LATIN.sub(" ", text)))


def main_language(text: str) -> str:
    """Return "zh" if `text` has more Chinese than English words, else "en"."""
    english, chinese, _ = count_words(text)
    return "zh" if chinese > english else "en"
