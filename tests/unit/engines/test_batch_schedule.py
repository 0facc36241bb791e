"""Batches that grow: where each step's rows begin depends on the step alone, and the papers' numbers come out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.config import compose
from framework.engines.batch_schedule import BatchRamp, BatchSchedule
from framework.errors import UserError

SCHEDULES = st.builds(
    lambda start, grow, multiple, tokens, row_tokens: BatchSchedule(
        start * multiple + grow, row_tokens, BatchRamp(start * multiple, tokens, multiple)
    ),
    st.integers(1, 20), st.integers(0, 50), st.integers(1, 4), st.integers(1, 30_000), st.integers(1, 64),
)  # fmt: skip


@settings(deadline=None)
@given(SCHEDULES)
def test_rows_follow_each_other_and_grow_to_the_full_batch(batches: BatchSchedule) -> None:
    assert batches.ramp is not None
    end = batches.steps(batches.ramp.tokens)
    rows = [batches.rows_at(step) for step in range(end + 3)]
    starts = [batches.first_row(step) for step in range(end + 3)]
    assert starts == [sum(rows[:step]) for step in range(end + 3)]
    assert rows == sorted(rows)
    assert rows[0] == batches.ramp.start_rows
    assert rows[end:] == [batches.rows] * 3
    assert all(row % batches.ramp.multiple == 0 for row in rows[:end])


@settings(deadline=None)
@given(SCHEDULES, st.integers(0, 100_000))
def test_steps_is_the_first_step_that_reaches_the_tokens(batches: BatchSchedule, tokens: int) -> None:
    steps = batches.steps(tokens)
    assert batches.tokens(steps) >= tokens
    assert steps == 0 or batches.tokens(steps - 1) < tokens


def test_without_a_ramp_every_step_is_full() -> None:
    batches = BatchSchedule(8, 256)
    assert [batches.rows_at(step) for step in (0, 1, 99)] == [8, 8, 8]
    assert batches.tokens(2000) == 2000 * 8 * 256


def test_a_ramp_down_is_refused() -> None:
    with pytest.raises(UserError, match="start_rows"):
        BatchSchedule(8, 256, BatchRamp(16, 1e6))


# Tokens in all; where the papers change the rate, (tokens, rate before, rate after): V3 section 4.2, V2 section 3.1.2
# and appendix B, DeepSeekMoE section 5.1.2, V1 section 2.3.
STEPS = {"moe_16b": 106_449}  # published, and 0.5% above its 2T tokens
PUBLISHED = {
    "v3_671b": (14.8e12, [(10e12, 2.2e-4, 2.2e-4), (14.3e12, 2.2e-5, 2.2e-5), (14.633e12, 2.2e-5, 7.3e-6)]),
    "v2_236b": (8.1e12, [(4.86e12, 2.4e-4, 2.4e-4 * 0.316), (7.29e12, 2.4e-4 * 0.316, 2.4e-4 * 0.316**2)]),
    "v2_lite": (5.7e12, [(4.56e12, 4.2e-4, 4.2e-4 * 0.316), (5.13e12, 4.2e-4 * 0.316, 4.2e-4 * 0.316**2)]),
    "moe_16b": (2e12, [(0.8 * 2.009e12, 4.2e-4, 4.2e-4 * 0.316), (0.9 * 2.009e12, 4.2e-4 * 0.316, 4.2e-4 * 0.316**2)]),
    "v1_67b": (2e12, [(1.6e12, 3.2e-4, 3.2e-4 * 0.316), (1.8e12, 3.2e-4 * 0.316, 3.2e-4 * 0.316**2)]),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_shipped_schedules_are_the_papers(model: str) -> None:
    config = compose([f"model={model}", "cluster=h800_512"]).stage["pretrain"]
    (total, changes), at = PUBLISHED[model], config.engine.schedule.at
    assert config.steps == STEPS.get(model, config.batches.steps(total))
    assert (at(0), at(1999)) == (pytest.approx(changes[0][1] / 2000), changes[0][1])  # warm-up of 2,000 steps
    for tokens, before, after in changes:
        step = config.batches.steps(tokens)
        assert at(step - 10) == pytest.approx(before, rel=1e-5), f"{tokens:.4g} tokens"
        assert at(step + 10) == pytest.approx(after, rel=1e-5), f"{tokens:.4g} tokens"
    assert at(config.steps - 1) == pytest.approx(changes[-1][2], rel=1e-6)


def test_v3_ramps_its_batch_and_stops_moving_the_bias() -> None:
    config = compose(["model=v3_671b", "cluster=h800_512"]).stage["pretrain"]
    batches, gamma = config.batches, config.engine.bias_update_speed
    assert (batches.rows_at(0), batches.rows_at(batches.steps(469e9))) == (3072, 15360)
    middle = batches.rows_at(batches.steps(469e9 / 2))
    assert middle == pytest.approx((3072 + 15360) / 2, rel=0.01)
    before, after = (gamma.at(batches.steps(tokens)) for tokens in (14.29e12, 14.31e12))
    assert (before, after) == (1e-3, 0.0)
    cosine = [config.engine.schedule.at(batches.steps(tokens)) for tokens in np.linspace(10e12, 14.3e12, 50)]
    assert all(b < a for a, b in itertools.pairwise(cosine))
