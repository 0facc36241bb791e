"""Group-relative advantages: the mean reward of a prompt's G responses is the baseline."""

from __future__ import annotations

import torch

STD_EPSILON = 1e-6  # keeps a nearly constant group from blowing up
NOISE = 1e-6  # rewards closer than this, relative to the largest (or to 1), are equal: float32 carries 6e-8


def group_advantages(rewards_G: torch.Tensor, std: bool = True) -> torch.Tensor:
    """Return (r - mean r) / std r for the G responses to one prompt, [G] float32.

    DeepSeekMath section 4.1.2 and R1 eq. 3. They do not say which standard deviation; this is the population's
    (divided by G, not G - 1): it is defined for G = 1 and gives binary rewards at p = 1/2 advantages of exactly +-1.
    `std=False` leaves out the division (Dr.GRPO; DeepSeek-V3.2 section 3.1). A group without signal gets
    zeros. Raises ValueError on an empty group or a reward that is not finite.
    """
    if not has_signal(rewards_G):
        return torch.zeros(rewards_G.shape, dtype=torch.float32)
    rewards = rewards_G.to(torch.float64)
    centred = rewards - rewards.mean()
    if std:
        centred = centred / (rewards.std(correction=0) + STD_EPSILON)
    return centred.to(torch.float32)


def leave_one_out(rewards_G: torch.Tensor) -> torch.Tensor:
    """Return r_i less the mean of the other rewards, [G] float32 (RLOO, 2402.14740 section 3.2); zeros without signal.

    That is G / (G - 1) times r - mean r.
    """
    n = rewards_G.numel()
    return group_advantages(rewards_G, std=False) * (n / (n - 1) if n > 1 else 0.0)


def has_signal(rewards_G: torch.Tensor) -> bool:
    """Whether the group's rewards differ by more than float noise, so that some advantage is not zero.

    0.1 + 0.2 and 0.3 are one reward, whatever their last bits say: divided by a std of 1e-17 they would train.
    """
    if rewards_G.numel() == 0 or not bool(torch.isfinite(rewards_G).all()):
        raise ValueError(f"rewards of a group must be finite and at least one, got {rewards_G.tolist()}")
    rewards = rewards_G.to(torch.float64)
    return bool(rewards.max() - rewards.min() > NOISE * max(1.0, float(rewards.abs().max())))
