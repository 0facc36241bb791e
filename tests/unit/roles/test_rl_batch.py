"""What a batch is made of, and the names under which its numbers are recorded."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from framework.observe.curves import CURVES
from framework.roles.rl_batch import STEP_METRICS, step_metrics
from framework.types import StepResult


def test_step_metrics_are_means_over_the_steps_that_trained() -> None:
    steps = [
        StepResult(1, {"loss": 1.0, "clip_low": 0.2, "grad_norm": 3.0, "lr": 0.1, "tokens": 10.0}),
        StepResult(2, {"loss": 0.0, "clip_low": 0.0, "grad_norm": 0.0, "lr": 0.3, "tokens": 0.0}),  # no signal
    ]
    assert step_metrics(steps) == pytest.approx(
        {"loss/policy": 1.0, "clip/low": 0.2, "train/grad_norm": 3.0, "train/lr": 0.2, "train/tokens": 10.0}
    )
    assert step_metrics(steps[1:]) == {"train/lr": 0.3}


def test_the_report_has_a_chart_for_what_a_step_reports() -> None:
    charted = [pattern for curves in CURVES for pattern in curves.metrics]
    names = [*STEP_METRICS.values(), "train/entropy", "train/grad_norm", "train/lr"]
    alone = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in charted)]
    assert alone == ["policy/ratio", "policy/tis_weight"]  # in charts of their own: their scales fit no other
