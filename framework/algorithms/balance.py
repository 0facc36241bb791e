"""Load balance of routed experts: V3's bias rule and sequence-wise loss, V2's three auxiliary losses.

Dimensions: T tokens, E routed experts, K experts chosen by a token, S sequences, L MoE layers, D devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AuxiliaryLosses:
    """DeepSeek-V2's balance losses, each without its factor alpha; scalars, differentiable."""

    expert: torch.Tensor
    device: torch.Tensor
    communication: torch.Tensor


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
    scores_TE: torch.Tensor, experts_TK: torch.Tensor, segment_lengths_S: torch.Tensor
) -> torch.Tensor:
    """Return sum_i f_i P_i of each sequence of the packed row, [S]; the caller applies alpha and averages.

    DeepSeek-V3 eq. 17-20: f_i = E/(K T) * tokens that chose expert i, P_i = mean of s_i / sum_j s_j, both within one
    sequence. `scores_TE` are the gate's affinities before the bias (sigmoid), differentiable; `experts_TK` the choice.
    A perfectly balanced sequence gives 1.
    """
    n_experts, top_k = scores_TE.shape[1], experts_TK.shape[1]
    n_segments = segment_lengths_S.shape[0]
    segments = torch.arange(n_segments, device=scores_TE.device)
    segment_T = segments.repeat_interleave(segment_lengths_S, output_size=scores_TE.shape[0])
    shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    zeros_SE = torch.zeros(n_segments, n_experts, dtype=scores_TE.dtype, device=scores_TE.device)
    lengths_S1 = segment_lengths_S[:, None]
    frequency_SE = zeros_SE.index_add(0, segment_T, _chosen(experts_TK, scores_TE)) * n_experts / (top_k * lengths_S1)
    mean_share_SE = zeros_SE.index_add(0, segment_T, shares_TE) / lengths_S1
    return (frequency_SE * mean_share_SE).sum(-1)


def auxiliary_losses(
    scores_TE: torch.Tensor, experts_TK: torch.Tensor, n_devices: int, max_devices: int
) -> AuxiliaryLosses:
    """Return DeepSeek-V2's expert-, device- and communication-level losses (section 2.2.3).

    Experts are laid out in D equal groups in order, one a device; a token is sent to at most M = `max_devices` of them.
    With f_i = E/(K T) * tokens that chose i and P_i = mean score (softmax affinities, not renormalised):
    expert = sum_i f_i P_i; device = sum_d (mean of f in d) (sum of P in d);
    communication = sum_d D/(M T) * tokens sent to d * (sum of P in d).
    Raises ValueError if the experts do not divide by the devices.
    """
    n_tokens, n_experts = scores_TE.shape
    top_k = experts_TK.shape[1]
    if n_experts % n_devices:
        raise ValueError(f"{n_experts} experts do not divide over {n_devices} devices")
    chosen_TE = _chosen(experts_TK, scores_TE)
    frequency_E = chosen_TE.sum(0) * n_experts / (top_k * n_tokens)
    mean_score_E = scores_TE.mean(0)
    per_device = n_experts // n_devices
    mean_score_D = mean_score_E.view(n_devices, per_device).sum(-1)
    frequency_D = frequency_E.view(n_devices, per_device).mean(-1)
    sent_D = (chosen_TE.view(n_tokens, n_devices, per_device).sum(-1) > 0).to(scores_TE.dtype).sum(0)
    return AuxiliaryLosses(
        expert=(frequency_E * mean_score_E).sum(),
        device=(frequency_D * mean_score_D).sum(),
        communication=(sent_D * n_devices / (max_devices * n_tokens) * mean_score_D).sum(),
    )


def _chosen(experts_TK: torch.Tensor, scores_TE: torch.Tensor) -> torch.Tensor:
    """Return [T, E] with 1 where the token chose the expert; a count, so it carries no gradient."""
    return torch.zeros_like(scores_TE, requires_grad=False).scatter(1, experts_TK, 1.0)
