"""GRPO: the group's mean reward is the baseline, a clipped ratio a token, the KL term in the loss.

DeepSeekMath (2402.03300) eq. 3, DeepSeek-R1 (2501.12948) eq. 1-3; DeepSeek-V3.2's corrections (section 3.1, eq. 5-9)
and IcePop (Ring-1T, 2510.18855) are settings of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from framework.algorithms.advantages import group_advantages
from framework.algorithms.policy_loss import (
    Gain,
    PolicyValues,
    banded_weights,
    clipped_gain,
    offpolicy_mask,
    token_ratio,
    truncated_weights,
)
from framework.bounds import NonNegativeFloat, PositiveFloat, bounded
from framework.errors import UserError
from framework.objectives.policy import PolicyObjective
from framework.types import PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class Grpo(PolicyObjective):
    """1/G sum_i 1/|o_i| sum_t (min(rho A, clip(rho) A) - beta KL).

    The defaults are R1-Zero's, with a token-level ratio. R1-Zero's clip range is not published: 0.2 is PPO's usual one.
    R1's first RL stage uses 10 on both sides; as the ratio is positive, only the upper bound 11 can then bind, and only
    for positive advantages.
    """

    kl_coef: NonNegativeFloat = 0.001
    clip_low: NonNegativeFloat = 0.2  # ratio clipped below at 1 - clip_low
    clip_high: NonNegativeFloat = 0.2  # and above at 1 + clip_high
    advantage_std: bool = True  # divide advantages by the group's std
    tis_cap: PositiveFloat | None = None  # truncated importance sampling of the learner's old over sampler; null: off
    # IcePop: tokens whose old over sampler lies outside are masked, the others weighted by it; null: off
    icepop: tuple[PositiveFloat, PositiveFloat] | None = None
    offpolicy_mask_delta: PositiveFloat | None = None  # V3.2's off-policy sequence mask; nats per token; null: off

    def __post_init__(self) -> None:
        for name in ("tis_cap", "icepop"):
            if getattr(self, name) is not None and self.old_logprobs == "sampler":
                allowed = "needs algorithm.old_logprobs=learner: the sampler's over themselves are always 1"
                raise UserError(f"algorithm.{name}", getattr(self, name), allowed)
        if self.icepop is not None and (self.tis_cap is not None or self.icepop[0] >= self.icepop[1]):
            raise UserError("algorithm.icepop", self.icepop, "must be a rising pair, without algorithm.tis_cap")
        super().__post_init__()

    def notes(self) -> tuple[str, ...]:
        """V3.2's corrections are not all here."""
        if self.offpolicy_mask_delta is None:
            return ()
        return (
            "of DeepSeek-V3.2's corrections Keep Sampling Mask is not needed (top_p is 1) and Keep Routing not there: "
            "vLLM returns routed experts from GPU engines alone",
        )

    def advantages(self, rewards_G: torch.Tensor) -> torch.Tensor:
        """(r - mean) / std, or without the division."""
        return group_advantages(rewards_G, self.advantage_std)

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """The clipped ratio; metrics tis_weight and offpolicy_masked where these corrections are on."""
        found = clipped_gain(token_ratio(values), micro.advantages_T, self.clip_low, self.clip_high)
        gain_T, metrics_T = found.gain_T, dict(found.metrics_T)
        if self.old_logprobs == "learner":
            weight_T = self._engine_weights(values)
            gain_T, metrics_T["tis_weight"] = weight_T * gain_T, weight_T
        if self.offpolicy_mask_delta is not None:
            kept_T = offpolicy_mask(values, micro, self.offpolicy_mask_delta)
            gain_T, metrics_T["offpolicy_masked"] = kept_T * gain_T, 1.0 - kept_T
        return Gain(gain_T, metrics_T)

    def _engine_weights(self, values: PolicyValues) -> torch.Tensor:
        """What corrects for sampling by another engine than pi_old's, [T]; ones where nothing does."""
        if self.icepop is not None:
            return banded_weights(values, *self.icepop)
        if self.tis_cap is not None:
            return truncated_weights(values, self.tis_cap)
        return torch.ones_like(values.old_T)
