"""The reward of responses that nobody scores: a stage reads them itself."""

from __future__ import annotations

from dataclasses import dataclass

from framework.rewards.base import Reward, RewardConfig
from framework.types import Prompt, Response


@dataclass(frozen=True, kw_only=True)
class Unscored(Reward):
    """0 for everything."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 0.0."""
        return 0.0


def unscored() -> RewardConfig:
    """Return rewards for a sampling whose responses are read, not scored."""
    return RewardConfig({"unscored": Unscored()})
