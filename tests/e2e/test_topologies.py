"""The whole loop with two learners, expert-parallel or not, synchronous or not, on the real engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("ep_size", "zero_stage", "max_staleness"),
    [(1, 1, 0), (2, 2, 1)],
    ids=["data-parallel-sync", "expert-parallel-async"],
)
def test_two_learners_train_the_loop(
    grpo_run: Callable[..., Run], ep_size: int, zero_stage: int, max_staleness: int
) -> None:
    run = grpo_run(
        "stage.grpo.steps=12",
        f"stage.grpo.max_staleness={max_staleness}",
        "cluster.learner_workers=2",
        f"engine.learner.ep_size={ep_size}",
        f"engine.learner.zero_stage={zero_stage}",
    )
    run.start()
    assert run.wait() == 0, run.output[-3000:]
    metrics = run.metrics("grpo")
    assert sorted(metrics["reward/mean"]) == [2, 4, 6, 8, 10, 12]
    assert max(metrics["staleness/max"].values()) == max_staleness
    gaps = metrics["mismatch/max_abs"].values()  # what two ranks published is what the sampler serves
    assert gaps
    assert max(gaps) < 1e-3
