"""Losses of learning from preferences without a reward model. Pure functions of answers' log-probabilities.

Dimensions: P pairs of a better and a worse answer, S answers.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def dpo(gaps_P: torch.Tensor, beta: float) -> torch.Tensor:
    """Return -log sigmoid(beta gap), [P] (DPO, 2305.18290 eq. 7).

    `gaps_P`: log(pi / pi_ref) of the better answer less that of the worse one, in nats.
    """
    return -functional.logsigmoid(beta * gaps_P)


def ipo(gaps_P: torch.Tensor, beta: float) -> torch.Tensor:
    """Return (gap - 1 / (2 beta))^2, [P] (IPO, 2310.12036 eq. 17, whose tau is beta); gaps as `dpo`'s, or a token's."""
    return (gaps_P - 1 / (2 * beta)) ** 2


def kto(ratios_S: torch.Tensor, kl: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what each answer costs if it is desirable, and if it is not, [S] each (KTO, 2402.01306 eq. 8).

    1 - sigmoid(beta (ratio - kl)) and 1 - sigmoid(beta (kl - ratio)); `ratios_S`: log(pi / pi_ref), `kl` the reference
    point z_0, both in nats.
    """
    gains_S = beta * (ratios_S - kl)
    return torch.sigmoid(-gains_S), torch.sigmoid(gains_S)


def log_odds(logprobs_S: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)) of probabilities below 1 given by their logarithms, [S] (ORPO, 2403.07691 eq. 4)."""
    near = logprobs_S > -math.log(2)  # where 1 - p cancels, expm1 does not
    rest_S = torch.where(near, torch.log(-torch.expm1(logprobs_S)), torch.log1p(-torch.exp(logprobs_S)))
    return logprobs_S - rest_S


def orpo(better_P: torch.Tensor, worse_P: torch.Tensor) -> torch.Tensor:
    """Return -log sigmoid of the log odds ratio, [P] (ORPO eq. 7), of the answers' mean logprobs a token."""
    return -functional.logsigmoid(log_odds(better_P) - log_odds(worse_P))
