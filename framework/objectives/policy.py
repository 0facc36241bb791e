"""What every policy objective has: the KL term, the reference, whose pi_old, which groups are trained on.

An objective is a file beside this one: a frozen dataclass whose fields are its paper's settings, with `gain` (what a
token adds, before the KL term), `advantages` and `denominator`. Neither the learner nor the loop knows which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from framework.algorithms.advantages import group_advantages, has_signal
from framework.algorithms.kl import k3
from framework.algorithms.policy_loss import Gain, PolicyValues, summed, token_ratio, trained_values
from framework.bounds import NonNegativeFloat, NonNegativeInt, bounded
from framework.errors import UserError
from framework.objectives.objective import Objective
from framework.stored import Sample, Scored
from framework.types import Denominator, Float32, LossOutput, PolicyMicroBatch, TrainSample


@dataclass(frozen=True, kw_only=True)
@bounded
class PolicyObjective:
    """Base of the objectives; raises UserError for values that none is defined for."""

    kl_coef: NonNegativeFloat = 0.0  # beta; 0: no KL term and no reference
    kl_estimator: Literal["k3", "k3_unbiased"] = "k3"  # k3_unbiased: times pi/pi_old (DeepSeek-V3.2 eq. 7)
    reference_reset_steps: NonNegativeInt = 400  # optimizer steps between reference := policy; 0: never
    old_logprobs: Literal["sampler", "learner"] = "sampler"  # whose pi_old the ratio uses
    # With kl_coef 0 a response with advantage 0 has no loss: true saves its forward; metrics are of the others then.
    skip_idle: bool = False
    # Reward component of 1 (right) or less by which groups are chosen: those all right or all wrong are sampled anew
    # (DAPO's dynamic sampling). null: every group is trained on.
    filter_on: str | None = None

    average: ClassVar[Denominator] = "response"  # what the sum of losses is divided by
    kl_in_reward: ClassVar[bool] = False  # the KL term is part of each response's reward, not of the loss
    group_baseline: ClassVar[bool] = True  # it compares the responses to a prompt: there must be two
    std: ClassVar[bool] = True  # advantages are divided by the group's standard deviation

    def __post_init__(self) -> None:
        if self.skip_idle and self.kl_coef:
            raise UserError("algorithm.skip_idle", True, f"must be false with algorithm.kl_coef={self.kl_coef:g}")

    @property
    def critic(self) -> Objective[Any, Any] | None:
        """What a second learner learns, which says what reward is to be expected (`token_advantages`); None: none."""
        return None

    def check(self, response_limit: int, components: Sequence[str]) -> None:
        """Raise UserError unless the objective fits the run's longest response and its rewards."""
        if self.filter_on is not None and self.filter_on not in components:
            allowed = f"must be one of the run's rewards: {', '.join(components)}; or null"
            raise UserError("algorithm.filter_on", self.filter_on, allowed)

    def notes(self) -> tuple[str, ...]:
        """What the plan says of the objective: where it is not all of its paper."""
        return ()

    def at_limit(self, response_limit: int) -> Any:
        """Return the objective for a run whose longest response has so many tokens."""
        return self

    def advantages(self, rewards_G: torch.Tensor) -> torch.Tensor:
        """Return the advantages of one group's scored responses, [G] float32."""
        return group_advantages(rewards_G, self.std)

    def wants(self, scored: Scored) -> bool:
        """Whether the group is trained on; else another takes its place.

        Responses without a score do not count. A prompt that the component does not judge is wanted if its total
        rewards differ.
        """
        if self.filter_on is None:
            return True
        valid = [score for score in scored.scores if not score.error]
        if not all(self.filter_on in score.components for score in valid):
            rewards = torch.tensor([score.total for score in valid], dtype=torch.float64)
            return len(valid) > 1 and has_signal(rewards)
        right = sum(score.components[self.filter_on] >= 1 for score in valid)
        return 0 < right < len(valid)

    def with_kl_reward(self, samples: Sequence[Sample], ref_logprobs: Sequence[Float32]) -> list[Sample]:
        """Return a batch's samples with the KL term in their advantages, where `kl_in_reward`."""
        raise NotImplementedError

    def token_advantages(
        self, samples: Sequence[TrainSample], values: Sequence[Float32], ref_logprobs: Sequence[Float32], kl_coef: float
    ) -> tuple[list[Float32], list[Float32]]:
        """Return each response's advantages and a critic's returns, [R] each, where `critic`."""
        raise NotImplementedError

    def next_kl_coef(self, kl_coef: float, kl: float) -> float:
        """Return the KL term's coefficient for the next batch, where `critic`."""
        return kl_coef

    def gain(self, values: PolicyValues, micro: PolicyMicroBatch) -> Gain:
        """Return what each token adds to the objective, [T], without the KL term and the token's weight."""
        raise NotImplementedError

    def loss(
        self, logprobs_T: torch.Tensor, micro: PolicyMicroBatch, entropy_T: torch.Tensor | None = None
    ) -> LossOutput:
        """Return -sum_t w_t (gain_t - beta KL_t).

        It is a sum: the caller divides by `denominator` of the whole minibatch, so that the result depends on no split
        of it. `logprobs_T` [T] is the policy's, differentiable. Metrics are sums over trained tokens, to be divided by
        the sum of `count`: those of `gain`, ratio, old_kl (k3 of pi to pi_old), with kl_coef ref_kl, entropy if given.
        """
        values = trained_values(logprobs_T, micro)
        found = self.gain(values, micro)
        total_T, sums_T = found.gain_T, dict(found.metrics_T)
        sums_T["old_kl"] = k3(values.logprobs_T, values.old_T)
        if self.kl_coef:
            sums_T["ref_kl"] = k3(values.logprobs_T, values.ref_T)
            if not self.kl_in_reward:
                weight = token_ratio(values) if self.kl_estimator == "k3_unbiased" else 1.0
                total_T = total_T - self.kl_coef * weight * sums_T["ref_kl"]
        if entropy_T is not None:
            sums_T["entropy"] = torch.where(micro.mask_T > 0, entropy_T, 0.0)
        return summed(-(micro.weights_T * total_T).sum(), sums_T, micro.mask_T)

    def denominator(self, n_responses: int, n_tokens: float) -> float:
        """Return what the minibatch's summed loss is divided by, of all responses that the step stands for.

        "response": mean over responses, of each one's token mean; "token": mean over the tokens of all.
        """
        return float(n_tokens if self.average == "token" else n_responses)
