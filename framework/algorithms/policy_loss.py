"""The parts that the policy objectives are made of, as functions of one packed row.

Dimensions: T tokens of the packed row, S its segments (one response each). Whatever a tensor holds where the mask is 0,
even inf, has no effect: `trained_values` makes it an exact zero, and no inf can meet a 0 and turn into NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from framework.algorithms.kl import clamp_log_ratio
from framework.types import LossOutput, MicroBatch, PolicyMicroBatch


@dataclass(frozen=True)
class PolicyValues:
    """Logprobs of the row's tokens [T], zeros where nothing is trained; `logprobs_T` is differentiable."""

    logprobs_T: torch.Tensor
    old_T: torch.Tensor  # pi_old of the ratio
    sampler_T: torch.Tensor  # what the inference engine returned
    ref_T: torch.Tensor


@dataclass(frozen=True)
class Gain:
    """What an objective adds up, before the KL term; [T], and metrics [T] that are summed over trained tokens."""

    gain_T: torch.Tensor
    metrics_T: Mapping[str, torch.Tensor]


def trained_values(logprobs_T: torch.Tensor, micro: PolicyMicroBatch) -> PolicyValues:
    """Return the policies' logprobs where the row is trained, zeros elsewhere."""
    trained_T = micro.mask_T > 0
    given = (logprobs_T, micro.old_logprobs_T, micro.sampler_logprobs_T, micro.ref_logprobs_T)
    return PolicyValues(*(torch.where(trained_T, values_T, 0.0) for values_T in given))


def token_ratio(values: PolicyValues) -> torch.Tensor:
    """Return rho = pi / pi_old token by token, [T]."""
    return torch.exp(clamp_log_ratio(values.logprobs_T - values.old_T))


def sequence_ratio(values: PolicyValues, micro: PolicyMicroBatch) -> torch.Tensor:
    """Return s = (pi(y) / pi_old(y))^(1/|y|) of each response, at its tokens [T] (GSPO eq. 7)."""
    return torch.exp(clamp_log_ratio(segment_means((values.logprobs_T - values.old_T) * micro.mask_T, micro)))


def clipped_gain(ratio_T: torch.Tensor, advantages_T: torch.Tensor, low: float, high: float) -> Gain:
    """Return min(rho A, clip(rho, 1 - low, 1 + high) A) (DeepSeekMath eq. 3; clip-higher: DAPO eq. 10).

    Metrics: ratio, and the tokens whose gradient the clip removed, clip_low and clip_high.
    """
    clipped_T = ratio_T.clamp(1.0 - low, 1.0 + high)
    removed = {
        "clip_low": (ratio_T < 1.0 - low) & (advantages_T < 0),
        "clip_high": (ratio_T > 1.0 + high) & (advantages_T > 0),
    }
    return Gain(torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T), {**removed, "ratio": ratio_T})


def segment_means(values_T: torch.Tensor, micro: PolicyMicroBatch) -> torch.Tensor:
    """Return each response's mean over its trained tokens, at its tokens [T]; `values_T` are zeros elsewhere."""
    tokens_S = segment_sums(micro.mask_T.to(values_T.dtype), micro)
    means_S = segment_sums(values_T, micro) / tokens_S.clamp_min(1.0)
    return means_S.repeat_interleave(micro.segment_lengths_S, output_size=values_T.shape[0])


def segment_sums(values_T: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
    """Return the sum over each segment, [S]."""
    n_segments = micro.segment_lengths_S.shape[0]
    segments = torch.arange(n_segments, device=values_T.device)
    segment_T = segments.repeat_interleave(micro.segment_lengths_S, output_size=values_T.shape[0])
    return torch.zeros(n_segments, dtype=values_T.dtype, device=values_T.device).index_add(0, segment_T, values_T)


@torch.no_grad()
def truncated_weights(values: PolicyValues, cap: float) -> torch.Tensor:
    """Return min(pi_old / pi_sampler, cap), [T]: corrects for sampling by another engine than pi_old's."""
    return torch.exp(clamp_log_ratio(values.old_T - values.sampler_T)).clamp_max(cap)


@torch.no_grad()
def banded_weights(values: PolicyValues, low: float, high: float) -> torch.Tensor:
    """Return pi_old / pi_sampler where it lies in [low, high], else 0, [T]: IcePop's double-sided mask."""
    ratio_T = torch.exp(clamp_log_ratio(values.old_T - values.sampler_T))
    return torch.where((ratio_T >= low) & (ratio_T <= high), ratio_T, 0.0)


@torch.no_grad()
def offpolicy_mask(values: PolicyValues, micro: PolicyMicroBatch, delta: float) -> torch.Tensor:
    """Return V3.2's sequence mask M on each token, [T] (section 3.1, eq. 8-9).

    0 where the response's advantage is negative and its mean log(pi_sampler / pi) is above `delta`; pi_old is what
    the inference engine returned, so the mask also covers the mismatch between engines.
    """
    drift_T = segment_means((values.sampler_T - values.logprobs_T) * micro.mask_T, micro)
    return 1.0 - ((drift_T > delta) & (micro.advantages_T < 0)).to(values.logprobs_T.dtype)


def summed(loss: torch.Tensor, values_T: Mapping[str, torch.Tensor], mask_T: torch.Tensor) -> LossOutput:
    """Return the loss with each metric's sum over trained tokens, in one device synchronisation."""
    rows = torch.stack([values.detach().to(mask_T.dtype) * mask_T for values in (*values_T.values(), mask_T)])
    *sums, tokens = rows.sum(-1).tolist()
    return LossOutput(loss, dict(zip(values_T, sums, strict=True)), tokens)
