"""What `check sync` calls good, and that a sampler whose weights are stale is not."""

from __future__ import annotations

import numpy as np

from framework.algorithms.mismatch import MismatchConfig, measure_mismatch
from framework.stages.sync_check import SyncCheck, _as_samples, describe, passes
from framework.types import Prompt, Response, ResponseGroup


def test_the_gate_is_the_run_s() -> None:
    found = SyncCheck(version=1, tokens=10, max_nats=0.5, mean_nats=0.05, moved_nats=0.2)
    assert passes(found, MismatchConfig(0.1, "mean_abs"))
    assert not passes(found, MismatchConfig(0.1, "max_abs"))
    assert not passes(found, MismatchConfig(0.01, "mean_abs"))
    assert describe(found) == "update 1 (moved the policy by 2.0e-01): 10 tokens, max 5.0e-01 nats, mean 5.0e-02 nats"


def test_a_stale_sampler_shows() -> None:
    ids, versions = np.arange(3, dtype=np.int32), np.full(3, 1, np.int32)
    response = Response(ids, np.float32([-1.0, -2.0, -3.0]), versions, "stop")
    samples = _as_samples(ResponseGroup(Prompt("p", "", "", "", token_ids=(5,)), (response, response)))
    assert [sample.advantage for sample in samples] == [1.0, -1.0]
    gap = measure_mismatch(samples, [np.float32([-1.0, -2.5, -3.0])] * 2, 1)
    assert (gap.tokens, gap.max_abs) == (6, 0.5)
    assert not passes(SyncCheck(1, gap.tokens, gap.max_abs, gap.mean_abs, 0.5), MismatchConfig(0.1))
