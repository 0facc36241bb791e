import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.algorithms.advantages import NOISE, STD_EPSILON, group_advantages, has_signal, leave_one_out


def test_hand_worked() -> None:
    # rewards 2 0 0 0: mean 1/2, population variance (9/4 + 3/4) / 4 = 3/4
    rewards_G = torch.tensor([2.0, 0.0, 0.0, 0.0])
    std = math.sqrt(0.75)
    expected = torch.tensor([1.5 / std, -0.5 / std, -0.5 / std, -0.5 / std])
    torch.testing.assert_close(group_advantages(rewards_G), expected)
    torch.testing.assert_close(group_advantages(rewards_G, std=False), torch.tensor([1.5, -0.5, -0.5, -0.5]))


def test_half_right_gives_plus_and_minus_one() -> None:
    torch.testing.assert_close(group_advantages(torch.tensor([1.0, 0.0])), torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(("rewards", "expected"), [([3.0, 1.0], [2.0, -2.0]), ([4.0, 1.0, 1.0], [3.0, -1.5, -1.5])])
def test_each_reward_against_the_mean_of_the_others(rewards: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(leave_one_out(torch.tensor(rewards)), torch.tensor(expected))
    assert leave_one_out(torch.tensor(rewards[:1])).tolist() == [0.0]


def test_advantages_are_float32_worked_out_in_float64() -> None:
    for rewards_G in (torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.25])):
        assert group_advantages(rewards_G.double()).dtype == torch.float32
    close_G = torch.tensor([1.0, 1 + 2**-18, 1 + 2**-18])  # their mean is no float32
    expected = [place / 3 * 2**-18 for place in (-2, 1, 1)]
    assert group_advantages(close_G, std=False).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_group_that_hardly_differs_is_held_down() -> None:
    rewards_G = torch.tensor([0.0, 4e-6], dtype=torch.float64)
    expected = 2e-6 / (2e-6 + STD_EPSILON)
    assert group_advantages(rewards_G).tolist() == pytest.approx([-expected, expected], rel=1e-6)


@pytest.mark.parametrize(("difference", "signal"), [(0.99, False), (1.0, False), (1.01, True)])
def test_noise_is_relative_to_one_or_to_the_largest_reward(difference: float, signal: bool) -> None:
    for scale in (1, 2**20):
        rewards_G = torch.tensor([0.0, difference * NOISE], dtype=torch.float64)
        largest_G = torch.tensor([scale, scale * (1 - difference * NOISE)], dtype=torch.float64)
        assert has_signal(rewards_G) is signal
        if difference != 1:
            assert has_signal(largest_G) is signal


@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [0.7] * 7, [3.0]])
@pytest.mark.parametrize("std", [True, False])
def test_equal_rewards_give_exact_zeros(rewards: list[float], std: bool) -> None:
    rewards_G = torch.tensor(rewards)
    assert not has_signal(rewards_G)
    assert group_advantages(rewards_G, std).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("rewards", [[0.1 + 0.2, 0.3], [1e6 + 0.1, 1e6 + 0.2], [-0.7, -0.1 * 7], [1e-9, 0.0]])
def test_float_noise_is_no_signal(rewards: list[float]) -> None:
    rewards_G = torch.tensor(rewards, dtype=torch.float64)
    assert rewards_G[0] != rewards_G[1]
    assert not has_signal(rewards_G)
    assert group_advantages(rewards_G).tolist() == [0.0, 0.0]
    float32_G = torch.tensor([0.3, 0.3 + 3e-8], dtype=torch.float32).double()  # what a model's reward may come to
    assert not has_signal(float32_G)
    assert has_signal(torch.tensor([0.3, 0.301]))
    assert has_signal(torch.tensor([1000.0, 1000.01], dtype=torch.float64))


@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=16))
@settings(max_examples=50, deadline=None)
def test_invariants(rewards: list[float]) -> None:
    rewards_G = torch.tensor(rewards)
    advantages_G = group_advantages(rewards_G)
    assert abs(float(advantages_G.sum())) < 1e-4
    torch.testing.assert_close(group_advantages(3.0 * rewards_G + 7.0), advantages_G, rtol=1e-4, atol=1e-4)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(len(rewards)))
    torch.testing.assert_close(group_advantages(rewards_G[order]), advantages_G[order])
    assert has_signal(rewards_G) == (len(set(rewards)) > 1)
    if has_signal(rewards_G):
        torch.testing.assert_close(float(advantages_G.square().mean()), 1.0, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("rewards", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_refuses_what_has_no_mean(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(torch.tensor(rewards))
