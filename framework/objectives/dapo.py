"""DAPO (2503.14476): clip-higher, mean over tokens, groups all right or all wrong sampled anew, no KL term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framework.algorithms.policy_loss import Gain, PolicyValues, clipped_gain, token_ratio
from framework.bounds import NonNegativeFloat, bounded
from framework.objectives.policy import PolicyObjective
from framework.types import Denominator, PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class Dapo(PolicyObjective):
    """1/sum_i |o_i| sum_i sum_t min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A), where 0 < number right < G (eq. 8, 4.1).

    Its rewards are 1 and -1 for right and wrong, with the soft penalty of overlong responses: conf/reward/dapo.yaml.
    """

    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.28
    filter_on: str | None = "accuracy"  # not the total reward: a penalty alone is nothing to learn from

    average: ClassVar[Denominator] = "token"

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """The ratio, clipped further above than below."""
        return clipped_gain(token_ratio(values), micro.advantages_T, self.clip_low, self.clip_high)
