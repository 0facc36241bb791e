"""What PPO with a critic learns from: a reward a token, generalised advantages, and how strongly KL counts.

Dimensions: R response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framework.types import Float32

KL_STEP = 0.1  # K_beta, and the largest relative error that a step of it heeds (1909.08593 section 2.2)
KL_ERROR = 0.2


def token_rewards(score: float, logprobs_R: Float32, reference_R: Float32, kl_coef: float) -> Float32:
    """Return -beta log(pi / pi_ref) of each token, and at the last one the response's score too, [R].

    Source: InstructGPT (2203.02155) eq. 2; token by token: Ziegler et al. (1909.08593) eq. 2.
    """
    rewards_R = -kl_coef * (logprobs_R - reference_R)
    rewards_R[-1] += score
    return rewards_R.astype(np.float32)


def generalised_advantages(rewards_R: Float32, values_R: Float32, gamma: float, lam: float) -> tuple[Float32, Float32]:
    """Return GAE's advantages and the returns that a critic learns, advantages + values, [R] each.

    A_t = delta_t + gamma lambda A_(t+1), delta_t = r_t + gamma V_(t+1) - V_t, with V = 0 behind the last token (GAE,
    1506.02438 eq. 16). `values_R`: of the state before each token.
    """
    advantages, behind, later = np.empty(len(rewards_R)), 0.0, 0.0
    for t in reversed(range(len(rewards_R))):
        behind = float(rewards_R[t]) + gamma * later - float(values_R[t]) + gamma * lam * behind
        later = float(values_R[t])
        advantages[t] = behind
    return advantages.astype(np.float32), (advantages + values_R).astype(np.float32)


def whitened(advantages: Sequence[Float32]) -> list[Float32]:
    """Return a batch's advantages with mean 0 and standard deviation 1 over all tokens, [R] each.

    As the code of Ziegler et al. has it; advantages that are all alike become zeros.
    """
    flat = np.concatenate(advantages).astype(np.float64)
    scale = flat.std() or 1.0
    return [((advantages_R - flat.mean()) / scale).astype(np.float32) for advantages_R in advantages]


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """Return the coefficient for the next batch: raised where the batch's KL was above the target, else lowered.

    beta (1 + 0.1 clip(kl / target - 1, -0.2, 0.2)); KL in nats a response (Ziegler et al. section 2.2).
    """
    return kl_coef * (1 + KL_STEP * max(-KL_ERROR, min(KL_ERROR, kl / target - 1)))
