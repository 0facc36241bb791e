"""GSPO (2507.18071): one ratio a response, the geometric mean of its tokens', clipped as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from framework.algorithms.policy_loss import Gain, PolicyValues, clipped_gain, sequence_ratio
from framework.bounds import NonNegativeFloat, bounded
from framework.objectives.policy import PolicyObjective
from framework.types import PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class Gspo(PolicyObjective):
    """1/G sum_i min(s_i A_i, clip(s_i, 1 - 3e-4, 1 + 4e-4) A_i) with s_i = (pi(y) / pi_old(y))^(1/|y|).

    Source: eq. 5-7, section 5.1. Written at tokens, 1/|y| sum_t s_i A_i, it is the same sum and gradient. The paper
    leaves the KL term out.
    """

    clip_low: NonNegativeFloat = 3e-4
    clip_high: NonNegativeFloat = 4e-4

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """The response's clipped ratio, at each of its tokens."""
        return clipped_gain(sequence_ratio(values, micro), micro.advantages_T, self.clip_low, self.clip_high)
