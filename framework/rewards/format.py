"""Format reward: the reasoning lies inside <think>, the answer inside <answer> or behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from framework.data.reasoning import split_reasoning
from framework.rewards.base import Reward
from framework.types import Prompt, Response

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SHAPE = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Format(Reward):
    """1 if the response is `<think>…</think> <answer>…</answer>`, else 0; with `answer: summary` `<think>…</think> …`.

    R1-Zero rewards reasoning between think tags, as its template asks (R1 section 2.2 and Table 1); value and regular
    expression are not stated. Here: each tag exactly once and in that order, both contents more than whitespace, only
    whitespace around and between, and the response finished by itself (a truncated one is never well-formed). What the
    prompt opened already (R1's "<think>") counts as said.

    The models behind R1-Zero close with a summary instead of answer tags: there the reasoning may be empty, as it is
    for simple requests in R1's data, and answer tags may stand in the summary or not.
    """

    answer: Literal["tags", "summary"] = "tags"

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0."""
        text = prompt.opened + response.text
        if self.answer == "summary":
            return float(response.finish_reason == "stop" and split_reasoning(text) is not None)
        if response.finish_reason != "stop" or any(text.count(tag) != 1 for tag in TAGS):
            return 0.0
        shape = _SHAPE.fullmatch(text)
        return float(shape is not None and all(content.strip() for content in shape.groups()))
