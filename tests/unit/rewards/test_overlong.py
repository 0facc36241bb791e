from __future__ import annotations

import pytest

from framework.errors import UserError
from framework.rewards.overlong import Overlong
from framework.types import Prompt
from tests.contract.sample_rewards import response_of


@pytest.mark.parametrize(
    ("n_tokens", "penalty"), [(0, 0.0), (60, 0.0), (61, -0.025), (80, -0.5), (99, -0.975), (100, -1.0), (300, -1.0)]
)
def test_penalty_falls_linearly_in_the_buffer(n_tokens: int, penalty: float) -> None:
    reward = Overlong(max_tokens=100, buffer_tokens=40)
    assert reward(Prompt("p0", "q", "t", "a"), response_of("x", n_tokens=n_tokens)) == pytest.approx(penalty)


@pytest.mark.parametrize("buffer_tokens", [0, -1, 101])
def test_a_buffer_outside_the_limit_is_refused(buffer_tokens: int) -> None:
    with pytest.raises(UserError, match=r"buffer_tokens: got .*; must be (at least 1|at most max_tokens=100)"):
        Overlong(max_tokens=100, buffer_tokens=buffer_tokens)
