from __future__ import annotations

import time

import pytest

from framework.errors import UserError
from framework.rewards.repetition import Repetition
from framework.types import Prompt
from tests.contract.sample_rewards import response_of

PROMPT = Prompt("p0", "q", "t", "a")


@pytest.mark.parametrize(
    ("n", "allowed", "text", "penalty"),
    [
        (2, 0.0, "", 0.0),
        (2, 0.0, "one two", 0.0),
        (2, 0.0, "a b c d", 0.0),
        (2, 0.0, "a b a b", -1 / 3),  # ab ba ab
        (2, 0.0, "A b a B", -1 / 3),
        (1, 0.0, "a a a a", -0.75),
        (1, 0.5, "a a a a", -0.5),  # 0.25 of 0.5 beyond what is allowed
        (1, 0.75, "a a a a", 0.0),
        (2, 0.0, "好的好的", -1 / 3),  # without blanks too
        (2, 0.0, "a, a, a,", -3 / 5),
        (1, 0.0, "x" * 64, -0.75),  # a run without blanks is many words
    ],
)
def test_penalty_is_the_share_of_repeated_n_grams(n: int, allowed: float, text: str, penalty: float) -> None:
    assert Repetition(n=n, allowed=allowed)(PROMPT, response_of(text)) == pytest.approx(penalty)


def test_a_loop_costs_nearly_all_and_prose_nothing() -> None:
    prose = "First add seven and eight, which is fifteen; then take nine away, so that six is what is left over."
    assert Repetition()(PROMPT, response_of(prose)) == 0.0
    assert Repetition()(PROMPT, response_of("wait, let me check that again. " * 300)) < -0.95
    assert Repetition()(PROMPT, response_of("等一下,让我再检查一遍。" * 300)) < -0.95


def test_it_takes_linear_time() -> None:
    began = time.process_time()
    Repetition()(PROMPT, response_of("ab" * 500_000))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("allowed", [-0.1, 1.0])
def test_an_allowance_outside_its_bounds_is_refused(allowed: float) -> None:
    with pytest.raises(UserError, match=r"Repetition\.allowed"):
        Repetition(allowed=allowed)
