"""Load balance of routed experts: V3's bias rule and sequence-wise loss, V2's three auxiliary losses.

Dimensions: T tokens, E routed experts, K experts chosen by a token, S sequences, L MoE layers, D devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Summed = Callable[[torch.Tensor], torch.Tensor]


def identity(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks where there is one."""
    return values


@dataclass(frozen=True)
class AuxiliaryLosses:
    """DeepSeek-V2's balance losses of S sequences, each without its factor alpha; differentiable."""

    expert_S: torch.Tensor
    device_S: torch.Tensor
    communication_S: torch.Tensor


def bias_update(load: torch.Tensor, speed: float) -> torch.Tensor:
    """Return what to add to the routing bias after a step: +speed for underloaded experts, -speed for overloaded.

    DeepSeek-V3 section 2.1.2. `load` ([E] or [L, E]) counts the tokens routed to each expert over the *whole* batch,
    all ranks; only the sign of its distance to the mean matters.
    """
    load = load.to(torch.float64)  # counts are exact in it, so a balanced expert gets exactly 0
    return (speed * torch.sign(load.mean(-1, keepdim=True) - load)).to(torch.float32)


def load_imbalance(load: torch.Tensor) -> torch.Tensor:
    """Return max / mean tokens per expert over the last dimension: 1 is even, E is collapse; 0 without tokens."""
    load = load.to(torch.float32)
    return load.amax(-1) / load.mean(-1).clamp_min(torch.finfo(torch.float32).tiny)


def sequence_balance_loss(
    scores_TE: torch.Tensor, experts_TK: torch.Tensor, segment_lengths_S: torch.Tensor, summed: Summed = identity
) -> torch.Tensor:
    """Return sum_i f_i P_i of each sequence of the packed row, [S]; the caller applies alpha and averages.

    DeepSeek-V3 eq. 17-20: f_i = E/(K T) * tokens that chose expert i, P_i = mean of s_i / sum_j s_j, both within one
    sequence. `scores_TE` are the gate's affinities before the bias (sigmoid), differentiable; `experts_TK` the choice.
    A perfectly balanced sequence gives 1. Where a sequence's tokens are on several ranks, `segment_lengths_S` counts
    those at hand and `summed` adds up over the ranks, differentiably.
    """
    frequency_SE, _ = _frequencies(scores_TE, experts_TK, segment_lengths_S, summed)
    shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    return (frequency_SE * _segment_means(shares_TE, segment_lengths_S, summed)).sum(-1)


def auxiliary_losses(
    scores_TE: torch.Tensor,
    experts_TK: torch.Tensor,
    segment_lengths_S: torch.Tensor,
    n_devices: int,
    max_devices: int,
    summed: Summed = identity,
) -> AuxiliaryLosses:
    """Return DeepSeek-V2's expert-, device- and communication-level losses (section 2.2.3) of each sequence.

    Experts are laid out in D equal groups in order, one a device; a token is sent to at most M = `max_devices` of them.
    With f_i = E/(K T) * tokens that chose i and P_i = mean score (softmax affinities, not renormalised), T the tokens
    of one sequence: expert = sum_i f_i P_i; device = sum_d (mean of f in d) (sum of P in d);
    communication = sum_d D/(M T) * tokens sent to d * (sum of P in d). `summed`: as in `sequence_balance_loss`.
    Raises ValueError if the experts do not divide by the devices.
    """
    n_experts = scores_TE.shape[1]
    if n_experts % n_devices:
        raise ValueError(f"{n_experts} experts do not divide over {n_devices} devices")
    frequency_SE, chosen_TE = _frequencies(scores_TE, experts_TK, segment_lengths_S, summed)
    mean_score_SE = _segment_means(scores_TE, segment_lengths_S, summed)
    by_device = (-1, n_devices, n_experts // n_devices)
    mean_score_SD = mean_score_SE.view(by_device).sum(-1)
    frequency_SD = frequency_SE.view(by_device).mean(-1)
    sent_TD = (chosen_TE.view(by_device).sum(-1) > 0).to(scores_TE.dtype)
    sent_SD = _segment_means(sent_TD, segment_lengths_S, summed) * n_devices / max_devices
    return AuxiliaryLosses(
        expert_S=(frequency_SE * mean_score_SE).sum(-1),
        device_S=(frequency_SD * mean_score_SD).sum(-1),
        communication_S=(sent_SD * mean_score_SD).sum(-1),
    )


def _frequencies(
    scores_TE: torch.Tensor, experts_TK: torch.Tensor, segment_lengths_S: torch.Tensor, summed: Summed
) -> tuple[torch.Tensor, torch.Tensor]:
    """f [S, E], 1 where balanced, and [T, E] with 1 where the token chose the expert: counts carry no gradient."""
    chosen_TE = torch.zeros_like(scores_TE, requires_grad=False).scatter(1, experts_TK, 1.0)
    scale = scores_TE.shape[1] / experts_TK.shape[1]
    return _segment_means(chosen_TE, segment_lengths_S, summed) * scale, chosen_TE


def _segment_means(values_TE: torch.Tensor, segment_lengths_S: torch.Tensor, summed: Summed) -> torch.Tensor:
    """Mean over each sequence's tokens, on all ranks that hold some, [S, E]."""
    n_segments = segment_lengths_S.shape[0]
    segments = torch.arange(n_segments, device=values_TE.device)
    segment_T = segments.repeat_interleave(segment_lengths_S, output_size=values_TE.shape[0])
    sums_SE = values_TE.new_zeros(n_segments, values_TE.shape[1]).index_add(0, segment_T, values_TE)
    return summed(sums_SE) / summed(segment_lengths_S)[:, None]
