"""A critic's loss."""

from __future__ import annotations

import torch


def clipped_value_loss(
    values_K: torch.Tensor, old_K: torch.Tensor, returns_K: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """Return 1/2 max((V - R)^2, (V_clipped - R)^2) of each of K tokens; V_clipped lies within `clip` of the old value.

    What the code of Ziegler et al. (1909.08593) and PPO's own do so that a batch moves the critic no further than the
    policy. None: no clipping.
    """
    squares_K = (values_K - returns_K) ** 2
    if clip is not None:
        clipped_K = old_K + (values_K - old_K).clamp(-clip, clip)
        squares_K = torch.maximum(squares_K, (clipped_K - returns_K) ** 2)
    return squares_K / 2
