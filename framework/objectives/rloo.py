"""RLOO (2402.14740): REINFORCE on whole responses, the mean reward of the others is the baseline, KL in the reward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from framework.algorithms.advantages import leave_one_out
from framework.algorithms.policy_loss import Gain, PolicyValues, token_ratio
from framework.bounds import NonNegativeFloat, NonNegativeInt, bounded
from framework.objectives.policy import PolicyObjective
from framework.stored import Sample
from framework.types import Denominator, Float32, PolicyMicroBatch


@dataclass(frozen=True, kw_only=True)
@bounded
class Rloo(PolicyObjective):
    """1/k sum_i (R_i - mean of the other R_j) grad log pi(y_i), R = r - beta log(pi(y) / pi_ref(y)) (section 3.2).

    There is no ratio: it is meant for one optimizer step a batch (stage.grpo.minibatches_per_rollout: 1). pi in R is
    the policy that sampled. beta is what the paper's summarisation runs use.
    """

    kl_coef: NonNegativeFloat = 0.03
    reference_reset_steps: NonNegativeInt = 0  # the reference stays the model that training began with

    average: ClassVar[Denominator] = "sequence"
    kl_in_reward: ClassVar[bool] = True

    def advantages(self, rewards_G: torch.Tensor) -> torch.Tensor:
        """r - mean of the others."""
        return leave_one_out(rewards_G)

    def with_kl_reward(self, samples: Sequence[Sample], ref_logprobs: Sequence[Float32]) -> list[Sample]:
        """Take beta log(pi / pi_ref) of each response, less the mean of the other responses' to its prompt, off it."""
        groups: dict[str, list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            groups[sample.prompt_id].append(index)
        kl = [s.logprob - float(ref.sum(dtype=np.float64)) for s, ref in zip(samples, ref_logprobs, strict=True)]
        changed = list(samples)
        for members in groups.values():
            gaps_G = leave_one_out(torch.from_numpy(np.array([kl[i] for i in members]))).tolist()
            for i, gap in zip(members, gaps_G, strict=True):
                changed[i] = replace(samples[i], advantage=samples[i].advantage - self.kl_coef * gap)
        return changed

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """A log pi."""
        return Gain(micro.advantages_T * values.logprobs_T, {"ratio": token_ratio(values).detach()})
