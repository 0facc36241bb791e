"""CISPO (MiniMax-M1, 2506.13585): the importance weight is clipped, no token loses its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framework.algorithms.policy_loss import Gain, PolicyValues, token_ratio
from framework.bounds import NonNegativeFloat, bounded
from framework.objectives.policy import PolicyObjective
from framework.types import Denominator, PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class Cispo(PolicyObjective):
    """1/sum_i |o_i| sum_i sum_t sg(min(rho, 1 + clip_high)) A log pi (eq. 4-5; no KL term, DAPO's dynamic sampling).

    The weight has no lower bound; the paper tunes the upper one and does not say to what: 4.0 is ours.
    """

    clip_high: NonNegativeFloat = 4.0  # the importance weight is at most 1 + clip_high
    filter_on: str | None = "accuracy"

    average: ClassVar[Denominator] = "token"

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """REINFORCE with a bounded importance weight."""
        ratio_T = token_ratio(values).detach()
        bounded_T = ratio_T.clamp_max(1.0 + self.clip_high)
        metrics = {"clip_high": ratio_T > 1.0 + self.clip_high, "ratio": ratio_T}
        return Gain(bounded_T * micro.advantages_T * values.logprobs_T, metrics)
