"""Repetition penalty: how much of a response says again what it said before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from framework.bounds import Bound, PositiveInt, bounded
from framework.data.readability import repeated_share
from framework.rewards.base import Reward
from framework.types import Prompt, Response

# A word, a Chinese character, or a sign each: what n-grams are made of. A long run without blanks is many words.
_UNIT = re.compile(r"[^\W_\u2e80-\u9fff\uf900-\ufaff]{1,16}|[^\s]")


@dataclass(frozen=True, kw_only=True)
@bounded
class Repetition(Reward):
    """0 down to -1: the share of the response's n-grams that stood in it before, beyond what is allowed.

    Up to `allowed` costs nothing (solutions name the same things again); from there the penalty falls linearly to -1
    where every n-gram is a repeated one. R1's data filters drop repetitive text without saying how (R1v2 B.3.2).
    """

    n: PositiveInt = 8
    allowed: Annotated[float, Bound(least=0, below=1)] = 0.2

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a penalty in [-1, 0]; 0 for a response too short to repeat itself."""
        share = repeated_share(_UNIT.findall(response.text.casefold()), self.n)
        return -max(0.0, share - self.allowed) / (1 - self.allowed)
