"""PPO with a critic (1707.06347), as InstructGPT (2203.02155) trains a policy: KL a token in the reward, GAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from framework.algorithms.gae import adapted_kl_coef, generalised_advantages, token_rewards, whitened
from framework.algorithms.policy_loss import Gain, PolicyValues, clipped_gain, token_ratio
from framework.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, Probability, bounded
from framework.objectives.policy import PolicyObjective
from framework.objectives.value import ValueRows
from framework.types import Denominator, Float32, PolicyMicroBatch, TrainSample


@dataclass(frozen=True, kw_only=True)
@bounded
class Ppo(PolicyObjective):
    """Mean over tokens of min(rho A, clip(rho) A), with GAE's A from a critic's values.

    beta, both clip ranges and gamma are InstructGPT's (section 3.5, C.4); lambda, the range of values and the whitening
    those of the code that it builds on (Ziegler et al., 1909.08593).
    """

    kl_coef: NonNegativeFloat = 0.02  # beta; with `kl_target` that of the first batch
    kl_target: PositiveFloat | None = None  # nats a response that beta is adapted to after every batch; null: it stays
    reference_reset_steps: NonNegativeInt = 0  # the reference stays the model that training began with
    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.2
    gamma: Probability = 1.0  # discount
    gae_lambda: Probability = 0.95
    value_clip: PositiveFloat | None = 0.2  # how far from its old value a critic's is trusted; null: any
    whiten: bool = True  # advantages of a batch to mean 0 and standard deviation 1

    average: ClassVar[Denominator] = "token"
    kl_in_reward: ClassVar[bool] = True
    group_baseline: ClassVar[bool] = False

    @property
    def critic(self) -> ValueRows:
        """Its clipped squared error."""
        return ValueRows(self.value_clip)

    def advantages(self, rewards_G: torch.Tensor) -> torch.Tensor:
        """The rewards: what was to be expected of them is the critic's to say."""
        return rewards_G.to(torch.float32)

    def token_advantages(
        self, samples: Sequence[TrainSample], values: Sequence[Float32], ref_logprobs: Sequence[Float32], kl_coef: float
    ) -> tuple[list[Float32], list[Float32]]:
        """Return each response's advantages, and the returns that its critic is to learn, [R] each."""
        found = []
        for sample, values_R, reference_R in zip(samples, values, ref_logprobs, strict=True):
            old_R = sample.sampler_logprobs if sample.old_logprobs is None else sample.old_logprobs
            rewards_R = token_rewards(sample.advantage, old_R, reference_R, kl_coef)
            found.append(generalised_advantages(rewards_R, values_R, self.gamma, self.gae_lambda))
        advantages, returns = ([pair[side] for pair in found] for side in (0, 1))
        return whitened(advantages) if self.whiten else advantages, returns

    def next_kl_coef(self, kl_coef: float, kl: float) -> float:
        """Return beta of the next batch, given the KL of this one in nats a response."""
        return kl_coef if self.kl_target is None else adapted_kl_coef(kl_coef, kl, self.kl_target)

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """The clipped ratio."""
        return clipped_gain(token_ratio(values), micro.advantages_T, self.clip_low, self.clip_high)
