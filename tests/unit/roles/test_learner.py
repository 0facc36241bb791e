"""What a rank measures before it trains."""

from __future__ import annotations

import numpy as np
import pytest

from framework.roles.learner import LearnerWorker
from framework.roles.rl_batch import TrainBatch
from framework.types import TrainSample
from tests.fakes import FakeLearner


def test_each_token_is_measured_under_the_version_that_sampled_it() -> None:
    """The policy moves by whole nats between versions, so any other version would show."""
    learner = FakeLearner(keep_versions=2)
    for version in (1, 2, 3):  # leaves 1, 2 and 3
        learner.logit = float(version)
        learner.publish(version)
    ids, versions = np.array([0, 1, 1, 0], np.int32), np.array([0, 1, 2, 2], np.int32)
    by_version = {v: -np.logaddexp(0, np.where(ids, -v, v)) for v in range(4)}
    theirs = np.array([by_version[int(v)][i] for i, v in enumerate(versions)], np.float32)
    theirs[3] -= 0.3
    worker = LearnerWorker()
    worker._learner = learner  # type: ignore[assignment]
    sample = TrainSample("p", np.array([5], np.int32), ids, 0.0, theirs, versions)
    found = worker._measure(TrainBatch((), (sample,), version=3))
    assert found.tokens == 3  # version 0 is gone
    assert (found.mean_abs, found.max_abs) == pytest.approx((0.1, 0.3), abs=1e-6)
    assert found.worst is not None
    assert found.worst.position == 3
    gone = TrainSample("p", sample.prompt_ids, ids, 0.0, theirs, np.zeros(4, np.int32))
    assert worker._measure(TrainBatch((), (gone,), version=3)).tokens == 0
