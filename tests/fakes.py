"""Fakes of the roles in framework.protocols: loop logic runs on them in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable

from framework.types import Prompt, Response, ResponseGroup, RewardScore


class FakeScorer:
    """Scores with one function, named "reward"; keeps the groups that it was given."""

    def __init__(self, reward: Callable[[Prompt, Response], float]) -> None:
        self._reward = reward
        self.groups: list[ResponseGroup] = []

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        self.groups.append(group)
        return tuple(self._score_one(group.prompt, response) for response in group.responses)

    def _score_one(self, prompt: Prompt, response: Response) -> RewardScore:
        try:
            value = float(self._reward(prompt, response))
        except Exception as error:
            return RewardScore(0.0, error=f"reward raised {type(error).__name__}: {error}")
        return RewardScore(value, {"reward": value}) if math.isfinite(value) else RewardScore(0.0, error=f"got {value}")
