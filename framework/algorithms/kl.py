"""Per-token estimators of KL(pi || pi_ref) from samples of pi (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

import torch

MAX_LOG_RATIO = 20.0  # exp beyond it overflows long before it means anything; the gradient is zero outside


def k1(logprobs_T: torch.Tensor, ref_logprobs_T: torch.Tensor) -> torch.Tensor:
    """Return log(pi / pi_ref) for each token, [T]: unbiased, high variance, may be negative."""
    return logprobs_T - ref_logprobs_T


def k3(logprobs_T: torch.Tensor, ref_logprobs_T: torch.Tensor) -> torch.Tensor:
    """Return pi_ref/pi - log(pi_ref/pi) - 1 for each token, [T]: unbiased, low variance, never negative.

    The KL term of GRPO (DeepSeekMath eq. 4; R1 eq. 2). The log ratio is limited to +-MAX_LOG_RATIO.
    """
    log_ratio_T = clamp_log_ratio(ref_logprobs_T - logprobs_T)
    return torch.expm1(log_ratio_T) - log_ratio_T  # expm1: near 0 the plain form cancels to float noise


def clamp_log_ratio(log_ratio_T: torch.Tensor) -> torch.Tensor:
    """Limit a log ratio to what float32's exp and its gradient can carry."""
    return log_ratio_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
