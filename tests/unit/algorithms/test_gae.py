"""Generalised advantages, KL a token and the critic's loss: by hand, and GAE against its defining sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.algorithms.gae import adapted_kl_coef, generalised_advantages, token_rewards, whitened
from framework.algorithms.value_loss import clipped_value_loss


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_rewards_by_hand() -> None:
    # log ratios 0.5 and -1: -0.2 * 0.5, and 2 + 0.2 where the response ends
    found = token_rewards(2.0, array(-1.0, -2.0), array(-1.5, -1.0), 0.2)
    assert found.tolist() == pytest.approx([-0.1, 2.2])
    assert token_rewards(3.0, array(-1.0), array(-1.0), 0.2).tolist() == [3.0]


def test_advantages_by_hand() -> None:
    # delta_1 = 1 - 0.25 = 0.75; delta_0 = 0 + 0.5 * 0.25 - 1 = -0.875, plus 0.5 * 0.5 * 0.75
    advantages, returns = generalised_advantages(array(0.0, 1.0), array(1.0, 0.25), 0.5, 0.5)
    assert advantages.tolist() == pytest.approx([-0.6875, 0.75])
    assert returns.tolist() == pytest.approx([0.3125, 1.0])
    assert (advantages.dtype, returns.dtype) == (np.float32, np.float32)


@given(
    pairs=st.lists(st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32)), min_size=1, max_size=9),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_advantages_are_their_defining_sum(pairs: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards_R, values_R = (array(*side) for side in zip(*pairs, strict=True))
    behind = [*values_R[1:].tolist(), 0.0]
    deltas = [r + gamma * later - v for r, later, v in zip(rewards_R, behind, values_R, strict=True)]
    expected = [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]
    advantages, returns = generalised_advantages(rewards_R, values_R, gamma, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, advantages + values_R, rtol=1e-5, atol=1e-5)


def test_without_discount_and_lambda_one_the_return_is_the_reward_to_come() -> None:
    _, returns = generalised_advantages(array(0.5, -1.0, 2.0), array(9.0, -4.0, 1.0), 1.0, 1.0)
    assert returns.tolist() == pytest.approx([1.5, 1.0, 2.0])


def test_whitening_is_over_all_tokens() -> None:
    first, second = whitened([array(1.0, 3.0), array(5.0)])
    spread = math.sqrt(8 / 3)
    assert [*first, *second] == pytest.approx([-2 / spread, 0.0, 2 / spread])
    assert {first.dtype, second.dtype} == {np.dtype(np.float32)}
    assert [found.tolist() for found in whitened([array(2.0), array(2.0, 2.0)])] == [[0.0], [0.0, 0.0]]


def test_the_kl_coefficient_moves_by_a_fiftieth_at_most() -> None:
    assert adapted_kl_coef(0.1, kl=6.6, target=6.0) == pytest.approx(0.1 * 1.01)
    assert adapted_kl_coef(0.1, kl=60.0, target=6.0) == pytest.approx(0.1 * 1.02)
    assert adapted_kl_coef(0.1, kl=-3.0, target=6.0) == pytest.approx(0.1 * 0.98)
    assert adapted_kl_coef(0.1, kl=6.0, target=6.0) == pytest.approx(0.1)


def test_the_value_loss_by_hand() -> None:
    values_K = torch.tensor([1.0, 1.0, 0.1], requires_grad=True)
    old_K, returns_K = torch.tensor([0.0, 0.9, 0.0]), torch.tensor([2.0, 2.0, 2.0])
    # held at 0.2, so its error stays that of 0.2, and it learns nothing; the others are within the range
    losses_K = clipped_value_loss(values_K, old_K, returns_K, 0.2)
    assert losses_K.tolist() == pytest.approx([1.8**2 / 2, 0.5, 1.9**2 / 2])
    losses_K.sum().backward()
    assert values_K.grad is not None
    assert values_K.grad.tolist() == pytest.approx([0.0, -1.0, -1.9])
    # below the old values: -1 is held at -0.2, and 1.0 is within reach of 1.1
    values_K, old_K, returns_K = torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 1.1]), torch.tensor([-2.0, 0.0])
    assert clipped_value_loss(values_K, old_K, returns_K, 0.2).tolist() == pytest.approx([1.8**2 / 2, 0.5])


def test_the_value_loss_without_a_clip() -> None:
    values_K, old_K, returns_K = torch.tensor([1.0, 1.0, 0.1]), torch.tensor([0.0, 0.9, 0.0]), torch.full((3,), 2.0)
    assert clipped_value_loss(values_K, old_K, returns_K, None).tolist() == pytest.approx([0.5, 0.5, 1.9**2 / 2])
