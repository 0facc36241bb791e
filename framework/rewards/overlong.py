"""DAPO's soft penalty for responses that come close to the length limit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from framework.bounds import PositiveInt, bounded
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.types import Prompt, Response


@dataclass(frozen=True, kw_only=True)
@bounded
class Overlong(Reward):
    """0 up to `max_tokens - buffer_tokens`, falling linearly to -1 at `max_tokens` and beyond.

    Source: DAPO section 3.4, eq. 13; its setting is 16,384 expected tokens with a buffer of 4,096, a fifth of all.
    """

    max_tokens: PositiveInt | None = None  # null: the run's response limit
    buffer_tokens: PositiveInt | None = None  # null: a fifth of max_tokens

    def __post_init__(self) -> None:
        if self.max_tokens is not None and (self.buffer_tokens or 1) > self.max_tokens:
            raise UserError("buffer_tokens", self.buffer_tokens, f"must be at most max_tokens={self.max_tokens}")

    def at_limit(self, response_limit: int) -> Overlong:
        """Follow the response limit."""
        limit = self.max_tokens or response_limit
        return replace(self, max_tokens=limit, buffer_tokens=self.buffer_tokens or max(1, limit // 5))

    def check_limit(self, response_limit: int) -> None:
        """Raise UserError for a penalty that would never be whole, as no response is so long."""
        for name in ("max_tokens", "buffer_tokens"):
            tokens = getattr(self, name)
            if tokens is not None and tokens > response_limit:
                allowed = f"must be at most stage.grpo.max_tokens={response_limit}, or null to follow it"
                raise UserError(f"{name} of the overlong reward", tokens, allowed)

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a penalty in [-1, 0]; without a run's limit, by the paper's of 20,480 tokens."""
        limit = self.max_tokens or 20480
        buffer = self.buffer_tokens or max(1, limit // 5)
        excess = len(response.token_ids) - (limit - buffer)
        return -min(max(excess / buffer, 0.0), 1.0)
