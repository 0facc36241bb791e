"""Losses of pretraining and supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from framework.algorithms.logprobs import token_logprobs
from framework.types import LossOutput


def lm_loss(logits_TV: torch.Tensor, targets_T: torch.Tensor, weights_T: torch.Tensor) -> LossOutput:
    """Return next-token cross-entropy summed over the row, to be divided by the global batch's trained tokens.

    `targets_T` is shifted already; `weights_T` [T] is 0 at positions that are not trained. The metric `nll` is the
    unweighted sum over trained positions, `tokens` their number, so exp(nll / tokens) is the perplexity.
    """
    trained_T = weights_T > 0
    nll_T = torch.where(trained_T, -token_logprobs(logits_TV, targets_T), 0.0)
    nll, tokens = torch.stack([nll_T.detach().sum(), trained_T.sum().to(nll_T.dtype)]).tolist()
    return LossOutput((weights_T * nll_T).sum(), {"nll": nll}, tokens)


def add_mtp_loss(main: torch.Tensor, depths: Sequence[torch.Tensor], coefficient: float) -> torch.Tensor:
    """Return main + lambda/D sum_k L_k: multi-token prediction at D depths (DeepSeek-V3 eq. 24-25).

    Each L_k is the cross-entropy of depth k, divided by the same denominator as the main loss (the paper's T).
    """
    if not depths:
        return main
    return main + coefficient / len(depths) * torch.stack(list(depths)).sum()
