"""Online DPO (2402.04792): the policy's own best and worst answer to each prompt, by their rewards, are its pair.

Where a batch is one optimizer step, pi is the policy that sampled: DPO's gradient is then that of two logprobs, weighed
by how wrongly the pair is ranked, and the step is one of policy gradients like any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from framework.algorithms.advantages import has_signal
from framework.algorithms.policy_loss import Gain, PolicyValues, token_ratio
from framework.bounds import NonNegativeFloat, NonNegativeInt, bounded
from framework.objectives.policy import PolicyObjective
from framework.stored import Sample
from framework.types import Denominator, Float32, PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class OnlineDpo(PolicyObjective):
    """-log sigmoid(beta (log pi/pi_ref of the best - that of the worst)) of each prompt's responses (eq. 1).

    It is meant for one optimizer step a batch (stage.grpo.minibatches_per_rollout: 1). beta is `kl_coef`: how far the
    policy is held to its reference.
    """

    kl_coef: NonNegativeFloat = 0.1
    reference_reset_steps: NonNegativeInt = 0  # the reference stays the model that training began with

    average: ClassVar[Denominator] = "sequence"
    kl_in_reward: ClassVar[bool] = True

    def advantages(self, rewards_G: torch.Tensor) -> torch.Tensor:
        """1 for the best, -1 for the worst, 0 for the others and where all are alike."""
        found_G = torch.zeros(rewards_G.shape, dtype=torch.float32)
        if has_signal(rewards_G):
            found_G[rewards_G.argmax()], found_G[rewards_G.argmin()] = 1.0, -1.0
        return found_G

    def with_kl_reward(self, samples: Sequence[Sample], ref_logprobs: Sequence[Float32]) -> list[Sample]:
        """Weigh both sides of a pair by beta sigmoid(-beta gap), the loss's slope in the gap of their log-ratios."""
        pairs: dict[str, dict[float, int]] = defaultdict(dict)
        for index, sample in enumerate(samples):
            if sample.advantage:
                pairs[sample.prompt_id][sample.advantage] = index
        changed = list(samples)
        for pair in pairs.values():
            ratios = {
                side: samples[i].logprob - float(ref_logprobs[i].sum(dtype=np.float64)) for side, i in pair.items()
            }
            gap = torch.tensor(ratios[1.0] - ratios[-1.0], dtype=torch.float64)
            slope = self.kl_coef * float(torch.sigmoid(-self.kl_coef * gap))
            for side, index in pair.items():
                changed[index] = replace(samples[index], advantage=slope * side)
        return changed

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """A log pi."""
        return Gain(micro.advantages_T * values.logprobs_T, {"ratio": token_ratio(values).detach()})
