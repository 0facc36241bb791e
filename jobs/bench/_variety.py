"""A reward that costs nothing and differs between responses, so that every group trains."""

from __future__ import annotations

from dataclasses import dataclass

from framework.rewards.base import Reward
from framework.types import Prompt, Response


@dataclass(frozen=True, kw_only=True)
class Variety(Reward):
    """Number of distinct characters of the response."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return the count."""
        return float(len(set(response.text)))
