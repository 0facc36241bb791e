"""What a step computes does not depend on ranks, expert-parallel size, ZeRO stage or micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from framework.engines.expert_parallel import all_tensors, own_tensors
from framework.engines.policy_learner import DeepSpeedLearner
from tests.distributed import run_ranks
from tests.learners import minibatch, samples, tiny_learner

STEPS = 4
LAYOUTS = [  # expert-parallel size, ZeRO stage, token budget
    (1, 1, 128),
    (2, 1, 128),
    (2, 2, 96),
]


def train(**engine: Any) -> tuple[list[tuple[float, float]], dict[str, Any], Any]:
    """(loss, gradient norm) of each step, the weights after the last, and the load of the first."""
    learner = tiny_learner(**engine)
    results = [learner.train_minibatch(minibatch(seed=step)) for step in range(STEPS)]
    weights = {name: tensor.detach().clone().numpy() for name, tensor in all_tensors(learner.engine.model)}
    steps = [(result.metrics["loss"], result.metrics["grad_norm"]) for result in results]
    return steps, weights, results[0].expert_load_LE


def shared_names(learner: DeepSpeedLearner) -> set[str]:
    """Names of the tensors that this rank publishes."""
    return {name for name, _ in own_tensors(learner.engine.model)}


def train_all_layouts() -> list[Any]:
    """Run on each of two ranks: one start-up for all layouts."""
    outputs: list[Any] = []
    for ep_size, zero_stage, token_budget in LAYOUTS:
        outputs.append(train(ep_size=ep_size, zero_stage=zero_stage, token_budget=token_budget))
    learner = tiny_learner(ep_size=2)
    learner.train_minibatch(minibatch())
    outputs.append(learner.logprobs(samples()))
    outputs.append(shared_names(learner))
    return outputs


@pytest.mark.slow
def test_two_ranks_train_as_one_does() -> None:
    steps, weights, load_LE = train()
    alone = tiny_learner()
    alone.train_minibatch(minibatch())
    logprobs = alone.logprobs(samples())
    published = shared_names(alone)
    ranks = run_ranks(train_all_layouts, 2)
    assert all(norm > 0.5 for _, norm in steps), "the clip must bind for this test to see it"
    for outputs in ranks:
        for layout, (other_steps, other_weights, other_load_LE) in zip(LAYOUTS, outputs, strict=False):
            np.testing.assert_allclose(other_steps, steps, rtol=1e-5, atol=1e-6, err_msg=str(layout))
            np.testing.assert_array_equal(other_load_LE, load_LE)
            assert other_weights.keys() == weights.keys()
            for name, weight in weights.items():
                difference = np.linalg.norm(other_weights[name] - weight)
                assert difference <= 1e-5 * np.linalg.norm(weight), (layout, name)
        for ours, theirs in zip(logprobs, outputs[-2], strict=True):
            np.testing.assert_allclose(theirs, ours, atol=2e-5)
    shares = [outputs[-1] for outputs in ranks]
    assert shares[0] | shares[1] == published
    assert not shares[0] & shares[1]
    assert {name.split(".experts.")[1].split(".")[0] for name in shares[1]} == {"4", "5", "6", "7"}
