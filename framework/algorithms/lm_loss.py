"""Losses of pretraining and supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from framework.algorithms.logprobs import TokenScores
from framework.types import LossOutput


def lm_loss(logprobs_T: torch.Tensor, weights_T: torch.Tensor) -> LossOutput:
    """Return next-token cross-entropy summed over the row, to be divided by the global batch's trained tokens.

    `logprobs_T` are those of the targets; `weights_T` is 0 at positions that are not trained. The metric `nll` is the
    unweighted sum over trained positions, `count` their number, so exp(nll / count) is the perplexity.
    """
    trained_T = weights_T > 0
    nll_T = torch.where(trained_T, -logprobs_T, 0.0)
    nll, tokens = torch.stack([nll_T.detach().sum(), trained_T.sum().to(nll_T.dtype)]).tolist()
    return LossOutput((weights_T * nll_T).sum(), {"nll": nll}, tokens)


def add_mtp_loss(main: torch.Tensor, depths: Sequence[torch.Tensor], coefficient: float) -> torch.Tensor:
    """Return main + lambda/D sum_k L_k: multi-token prediction at D depths (DeepSeek-V3 eq. 24-25).

    Each L_k is the cross-entropy of depth k, divided by the same denominator as the main loss (the paper's T).
    """
    if not depths:
        return main
    return main + coefficient / len(depths) * torch.stack(list(depths)).sum()


@dataclass(frozen=True)
class MtpTargets:
    """What one depth of multi-token prediction learns of a row: K of its positions."""

    positions_K: torch.Tensor  # int64, into the row
    tokens_K: torch.Tensor  # int64
    weights_K: torch.Tensor  # float32

    def within(self, part: slice) -> MtpTargets:
        """Return those of a part of the row, positions counted from its start."""
        here_K = (self.positions_K >= part.start) & (self.positions_K < part.stop)
        return MtpTargets(self.positions_K[here_K] - part.start, self.tokens_K[here_K], self.weights_K[here_K])


def mtp_targets(
    targets_T: torch.Tensor, weights_T: torch.Tensor, segment_lengths_S: torch.Tensor, depths: int
) -> list[MtpTargets]:
    """Return the targets of depths 1 .. D: position i of depth k predicts t_(i+k+1), the main model's target at i+k.

    `targets_T` is shifted already. A target counts where it does for the main model (`weights_T` [T] above 0) and i+k
    is in i's segment; `segment_lengths_S` sum to T (rows of a batch, flattened, are segments too).
    """
    n_tokens = targets_T.shape[0]
    ends_T = segment_lengths_S.cumsum(0).repeat_interleave(segment_lengths_S, output_size=n_tokens)
    index_T = torch.arange(n_tokens, device=targets_T.device)
    found = []
    for k in range(1, depths + 1):
        learns_T = (index_T + k < ends_T) & (weights_T.roll(-k) > 0)
        positions_K = learns_T.nonzero().squeeze(-1)
        found.append(MtpTargets(positions_K, targets_T[positions_K + k], weights_T[positions_K + k]))
    return found


def mtp_loss(scores: TokenScores, weights_K: torch.Tensor) -> LossOutput:
    """Return one depth's cross-entropy as `lm_loss` does, with the metric `right`: how often its first choice hits."""
    output = lm_loss(scores.logprobs_T, weights_K)
    return LossOutput(output.loss, {**output.metrics, "right": float(scores.first_T.sum())}, output.count)
