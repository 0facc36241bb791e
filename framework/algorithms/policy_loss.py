"""GRPO's objective on one packed micro-batch, with its published variants behind `GrpoConfig`.

Dimensions: T tokens of the packed row, S its segments (one response each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from framework.algorithms.kl import clamp_log_ratio, k3
from framework.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, bounded
from framework.errors import UserError
from framework.types import Denominator, LossOutput, MicroBatch


@dataclass(frozen=True)
@bounded
class GrpoConfig:
    """What of GRPO differs between papers. The defaults are R1-Zero's, with a token-level ratio.

    R1-Zero's clip range is not published: 0.2 is PPO's usual one. R1's first RL stage uses 10 on both sides; as the
    ratio is positive, only the upper bound 11 can then bind, and only for positive advantages.
    """

    clip_low: NonNegativeFloat = 0.2  # ratio clipped below at 1 - clip_low
    clip_high: NonNegativeFloat = 0.2  # and above at 1 + clip_high (DAPO: 0.28)
    kl_coef: NonNegativeFloat = 0.001  # beta
    kl_estimator: Literal["k3", "k3_unbiased"] = "k3"  # k3_unbiased: times pi/pi_old (DeepSeek-V3.2 eq. 7)
    denominator: Denominator = "response"
    constant_length: PositiveInt | None = None  # tokens; what "constant" divides each response's sum by
    advantage_std: bool = True  # divide advantages by the group's std
    zero_std: Literal["keep", "refill"] = "keep"  # groups without signal: count as zeros, or sample others (DAPO)
    old_logprobs: Literal["sampler", "learner"] = "sampler"  # whose pi_old the ratio uses
    tis_cap: PositiveFloat | None = None  # truncated importance sampling of the learner's old over sampler; None: off
    offpolicy_mask_delta: PositiveFloat | None = None  # V3.2's off-policy sequence mask; nats per token; None: off
    reference_reset_steps: NonNegativeInt = 400  # optimizer steps between reference := policy; 0: never
    # With kl_coef 0 a response with advantage 0 has no loss: true saves its forward; metrics are of the others then.
    skip_idle: bool = False

    def __post_init__(self) -> None:
        """Raise UserError on a value that no objective is defined for."""
        if self.skip_idle and self.kl_coef:
            raise UserError("algorithm.skip_idle", True, f"must be false with algorithm.kl_coef={self.kl_coef:g}")
        if self.tis_cap is not None and self.old_logprobs == "sampler":
            allowed = "needs algorithm.old_logprobs=learner: the sampler's over themselves are always 1"
            raise UserError("algorithm.tis_cap", self.tis_cap, allowed)
        if (self.denominator == "constant") != (self.constant_length is not None):
            allowed = "set it (tokens, e.g. the longest response) with denominator=constant, and only then"
            raise UserError("algorithm.constant_length", self.constant_length, allowed)


def policy_loss(
    logprobs_T: torch.Tensor, micro: MicroBatch, config: GrpoConfig, entropy_T: torch.Tensor | None = None
) -> LossOutput:
    """Return -sum_t w_t (min(rho A, clip(rho) A) - beta KL), with rho = pi / pi_old token by token.

    DeepSeekMath eq. 3, R1 eq. 1, clip-higher and token mean from DAPO, corrections of DeepSeek-V3.2 eq. 5-9. It is a
    sum: the caller divides by `denominator` of the whole minibatch, so that the result depends on no split of it.
    `logprobs_T` [T] is the policy's, differentiable; whatever it holds where the mask is 0, even inf, has no effect.

    Metrics are sums over the trained tokens, to be divided by the sum of `tokens`: clip_low and clip_high (tokens whose
    gradient the clip removed), ratio, old_kl (k3 of pi to pi_old), tis_weight (1 where it is off), offpolicy_masked,
    with kl_coef ref_kl (k3), entropy if given.
    """
    mask_T = micro.mask_T
    trained_T = mask_T > 0
    # Masked positions become exact zeros first: afterwards no inf there can meet a 0 and turn into NaN.
    logprobs, old, sampler, ref = (
        torch.where(trained_T, values_T, 0.0)
        for values_T in (logprobs_T, micro.old_logprobs_T, micro.sampler_logprobs_T, micro.ref_logprobs_T)
    )
    ratio_T = torch.exp(clamp_log_ratio(logprobs - old))
    clipped_T = ratio_T.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    surrogate_T = torch.minimum(ratio_T * micro.advantages_T, clipped_T * micro.advantages_T)

    ref_kl_T = k3(logprobs, ref)
    penalty_T = ref_kl_T if config.kl_estimator == "k3" else ratio_T * ref_kl_T

    tis_T = _tis_weights(old, sampler, config.tis_cap)
    kept_T = _offpolicy_mask(logprobs, sampler, micro, config.offpolicy_mask_delta)
    loss = -(micro.weights_T * (tis_T * kept_T * surrogate_T - config.kl_coef * penalty_T)).sum()

    clipped_low_T = (ratio_T < 1.0 - config.clip_low) & (micro.advantages_T < 0)
    clipped_high_T = (ratio_T > 1.0 + config.clip_high) & (micro.advantages_T > 0)
    sums_T = {
        "clip_low": clipped_low_T,
        "clip_high": clipped_high_T,
        "ratio": ratio_T,
        "old_kl": k3(logprobs, old),
        "tis_weight": tis_T,
        "offpolicy_masked": 1.0 - kept_T,
    }
    if config.kl_coef:  # else there is no reference
        sums_T["ref_kl"] = ref_kl_T
    if entropy_T is not None:
        sums_T["entropy"] = torch.where(trained_T, entropy_T, 0.0)
    return _output(loss, sums_T, mask_T)


def denominator(config: GrpoConfig, n_responses: int, n_tokens: float) -> float:
    """Return what the minibatch's summed loss is divided by.

    `n_responses` counts every response that the step stands for, with signal or not, and `n_tokens` their tokens over
    all ranks. "response": mean over responses of each one's token
    mean (GRPO); "token": mean over tokens (DAPO); "constant": sum over tokens / constant_length, mean over responses
    (Dr.GRPO).
    """
    if config.denominator == "response":
        return float(n_responses)
    if config.denominator == "token":
        return float(n_tokens)
    assert config.constant_length is not None
    return float(n_responses * config.constant_length)


@torch.no_grad()
def _tis_weights(old_T: torch.Tensor, sampler_T: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Return min(pi_old / pi_sampler, cap), [T]: corrects for sampling by another engine than pi_old's."""
    if cap is None:
        return torch.ones_like(old_T)
    return torch.exp(clamp_log_ratio(old_T - sampler_T)).clamp(max=cap)


@torch.no_grad()
def _offpolicy_mask(
    logprobs_T: torch.Tensor, sampler_T: torch.Tensor, micro: MicroBatch, delta: float | None
) -> torch.Tensor:
    """Return V3.2's sequence mask M on each token, [T] (section 3.1, eq. 8-9).

    0 where the response's advantage is negative and its mean log(pi_sampler / pi) is above `delta`; pi_old is what
    the inference engine returned, so the mask also covers the mismatch between engines.
    """
    if delta is None:
        return torch.ones_like(logprobs_T)
    n_segments = micro.segment_lengths_S.shape[0]
    segments = torch.arange(n_segments, device=logprobs_T.device)
    segment_T = segments.repeat_interleave(micro.segment_lengths_S, output_size=logprobs_T.shape[0])
    zeros_S = torch.zeros(n_segments, dtype=logprobs_T.dtype, device=logprobs_T.device)
    drift_S = zeros_S.index_add(0, segment_T, (sampler_T - logprobs_T) * micro.mask_T)
    tokens_S = zeros_S.index_add(0, segment_T, micro.mask_T.to(zeros_S.dtype))
    too_far_T = (drift_S / tokens_S.clamp_min(1.0) > delta)[segment_T]
    return 1.0 - (too_far_T & (micro.advantages_T < 0)).to(logprobs_T.dtype)


def _output(loss: torch.Tensor, values_T: dict[str, torch.Tensor], mask_T: torch.Tensor) -> LossOutput:
    rows = torch.stack([values.detach().to(mask_T.dtype) * mask_T for values in (*values_T.values(), mask_T)])
    *sums, tokens = rows.sum(-1).tolist()  # one device synchronisation for all metrics
    return LossOutput(loss, dict(zip(values_T, sums, strict=True)), tokens)
