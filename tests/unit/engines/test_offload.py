"""A learner that leaves its device and comes back: on a CPU the same calls, from host memory to host memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from framework.engines.offload import _optimizer_tensors
from framework.engines.weights import unflatten
from tests.learners import minibatch, samples, tiny_learner


@pytest.mark.parametrize(("zero_stage", "dtype"), [(1, "float32"), (2, "float32"), (2, "bfloat16"), (3, "bfloat16")])
def test_a_learner_that_was_away_goes_on_exactly(zero_stage: int, dtype: str, tmp_path: Path) -> None:
    found = []
    for away in (False, True):
        learner = tiny_learner(zero_stage=zero_stage, dtype=dtype, seed=3)
        for step in range(3):
            learner.train_minibatch(minibatch(seed=step))
            learner.publish()
            if away:
                learner.engine.turn.offload()
                learner.engine.turn.offload()  # once is enough
                learner.engine.turn.reload()
        learner.save(tmp_path / f"{away}-{zero_stage}-{dtype}")
        sent = [tensor.float().numpy().copy() for _, tensor in unflatten(learner.publish())]
        found.append([*learner.logprobs(samples(4)), *sent])
    for stayed, went in zip(*found, strict=True):
        np.testing.assert_array_equal(stayed, went)


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_everything_large_leaves(zero_stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that is replaced has moved: on a CPU a copy of it stands for host memory."""
    learner = tiny_learner(zero_stage=zero_stage)
    learner.train_minibatch(minibatch())
    native = learner.engine.native
    moved: list[torch.device] = []
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: moved.append(self.numel()) or real(self, *a, **k))
    learner.engine.turn.offload()
    weights = sum(parameter.numel() for parameter in tiny_learner().engine.model.parameters())
    states = sum(tensor.numel() for tensor in _optimizer_tensors(native.optimizer)) if zero_stage == 3 else 0
    assert sum(moved) >= weights + max(states, 2 * weights)
