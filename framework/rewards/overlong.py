"""DAPO's soft penalty for responses that come close to the length limit."""

from __future__ import annotations

from dataclasses import dataclass

from framework.bounds import PositiveInt, bounded
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.types import Prompt, Response


@dataclass(frozen=True, kw_only=True)
@bounded
class Overlong(Reward):
    """0 up to `max_tokens - buffer_tokens`, falling linearly to -1 at `max_tokens` and beyond.

    Source: DAPO section 3.4, eq. 13; its setting is 16,384 expected tokens with a buffer of 4,096.
    """

    max_tokens: PositiveInt = 20480
    buffer_tokens: PositiveInt = 4096

    def __post_init__(self) -> None:
        if self.buffer_tokens > self.max_tokens:
            allowed = f"must be at most max_tokens={self.max_tokens}"
            raise UserError("buffer_tokens", self.buffer_tokens, allowed)

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a penalty in [-1, 0]."""
        excess = len(response.token_ids) - (self.max_tokens - self.buffer_tokens)
        return -min(max(excess / self.buffer_tokens, 0.0), 1.0)
