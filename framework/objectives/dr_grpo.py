"""Dr.GRPO (2503.20783): no division by a response's own length or by the group's std, no KL term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from framework.algorithms.policy_loss import Gain, PolicyValues, clipped_gain, token_ratio
from framework.bounds import NonNegativeFloat, PositiveInt, bounded
from framework.errors import UserError
from framework.objectives.policy import PolicyObjective
from framework.types import Denominator, PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class DrGrpo(PolicyObjective):
    """1/G sum_i 1/L sum_t min(rho A, clip(rho) A) with A = r - mean r, and L the longest response that may be sampled.

    Source: section 3.2 and Listing 1 of the paper.
    """

    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.2
    constant_length: PositiveInt | None = None  # L in tokens; null: stage.grpo.max_tokens

    average: ClassVar[Denominator] = "constant"
    std: ClassVar[bool] = False

    def check(self, response_limit: int, components: Sequence[str]) -> None:
        """Raise UserError if a response may be longer than L: its loss would not be a mean any more."""
        if self.constant_length is not None and self.constant_length < response_limit:
            allowed = f"must be at least stage.grpo.max_tokens={response_limit}, or null to follow it"
            raise UserError("algorithm.constant_length", self.constant_length, allowed)
        super().check(response_limit, components)

    def at_limit(self, response_limit: int) -> DrGrpo:
        """Let L follow the longest response."""
        return replace(self, constant_length=self.constant_length or response_limit)

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """The clipped ratio."""
        return clipped_gain(token_ratio(values), micro.advantages_T, self.clip_low, self.clip_high)

    def denominator(self, n_responses: int, n_tokens: float) -> float:
        """Responses times L."""
        assert self.constant_length is not None, "at_limit first"
        return float(n_responses * self.constant_length)
