"""Values that change at given steps."""

from __future__ import annotations

import pytest

from framework.engines.lr_schedule import StepwiseValue, value_at
from framework.errors import UserError


def test_a_stepwise_value_changes_at_its_steps() -> None:
    gamma = StepwiseValue(values=(1e-3, 1e-4, 0.0), until=(3, 5))
    assert [gamma.at(step) for step in range(7)] == [1e-3] * 3 + [1e-4] * 2 + [0.0] * 2
    assert [value_at(gamma, 4), value_at(0.3, 4)] == [1e-4, 0.3]


@pytest.mark.parametrize(("values", "until"), [((1.0,), (3,)), ((1.0, 2.0, 3.0), (5, 3)), ((1.0, 2.0), (0,))])
def test_contradicting_steps_are_refused(values: tuple[float, ...], until: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"until|values"):
        StepwiseValue(values, until)
