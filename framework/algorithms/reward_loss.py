"""Losses of reward models: scores of whole answers against what judges said of them.

Dimensions: S answers, P pairs of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

Pointwise = Literal["sigmoid", "scalar"]


def bradley_terry(scores_S: torch.Tensor, pairs_P2: torch.Tensor, margins_P: torch.Tensor) -> torch.Tensor:
    """Return -log sigmoid(s_better - s_worse - margin) of each pair, [P].

    Source: InstructGPT (2203.02155) eq. 1; the margin: Llama 2 (2307.09288) eq. 2. `pairs_P2` holds the places of
    better and worse answers (int64).
    """
    return -functional.logsigmoid(scores_S[pairs_P2[:, 0]] - scores_S[pairs_P2[:, 1]] - margins_P)


def pointwise(scores_S: torch.Tensor, labels_S: torch.Tensor, kind: Pointwise) -> torch.Tensor:
    """Return each answer's loss, [S]: sigmoid, the cross-entropy of a label in [0, 1]; scalar, (score - label)^2."""
    if kind == "sigmoid":
        return functional.binary_cross_entropy_with_logits(scores_S, labels_S, reduction="none")
    return (scores_S - labels_S) ** 2
