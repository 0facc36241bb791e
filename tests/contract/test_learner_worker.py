"""One learner rank as the loop drives it: the gate, pi_old, the temperature, responses without signal."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.algorithms.mismatch import MismatchConfig
from framework.errors import MismatchTooLarge
from framework.roles.learner import LearnerWorker
from framework.roles.rl_batch import TrainBatch
from framework.types import Float32, Minibatch, TrainSample
from tests.learners import samples, tiny_learner, tiny_model

pytestmark = pytest.mark.slow


def worker(**values: Any) -> LearnerWorker:
    """A rank in this process, not started by Ray."""
    made = LearnerWorker()
    made._learner = tiny_learner(**values)
    return made


def own(learner: Any, made: tuple[TrainSample, ...]) -> tuple[TrainSample, ...]:
    """The samples as this learner's policy would have drawn them."""
    found = learner.logprobs(made)
    return tuple(replace(sample, sampler_logprobs=lp) for sample, lp in zip(made, found, strict=True))


def concatenated(rows: list[Float32]) -> Float32:
    return np.concatenate(rows)


def test_a_batch_that_the_gate_refuses_does_not_move_the_weights() -> None:
    rank = worker()
    before = concatenated(rank._learner.logprobs(samples()))
    batch = TrainBatch((Minibatch.of(samples()),), samples(3), 0, MismatchConfig(stop_above=1e-6))
    with pytest.raises(MismatchTooLarge, match=r"mismatch\.stop_above"):
        rank.train(batch)
    np.testing.assert_array_equal(concatenated(rank._learner.logprobs(samples())), before)
    assert rank._learner.engine.steps == 0
    assert rank.train(replace(batch, gate=MismatchConfig(stop_above=100.0))).mismatch is not None
    assert rank._learner.engine.steps == 1


def test_pi_old_is_the_policy_before_the_first_step_of_a_batch() -> None:
    """Were it computed anew for each minibatch, every ratio would be 1 and nothing would ever be clipped."""
    rank = worker(kl_coef=0.0, old_logprobs="learner", lr=0.05)
    batch = TrainBatch(tuple(Minibatch.of(samples()) for _ in range(3)), (), 0)
    steps = [step.metrics for step in rank.train(batch).steps]
    assert steps[0]["ratio"] == pytest.approx(1.0)
    assert steps[0]["old_kl"] == pytest.approx(0.0, abs=1e-6)
    assert steps[2]["old_kl"] > 1e-3
    assert steps[2]["clip_low"] + steps[2]["clip_high"] > 0
    again = rank.train(batch).steps[0].metrics  # the next batch starts from the policy of now
    assert again["ratio"] == pytest.approx(1.0)


def test_logprobs_and_reference_are_at_the_samplers_temperature() -> None:
    learner = tiny_learner(temperature=0.7)
    model = tiny_model()
    for sample, found in zip(samples(), learner.logprobs(samples()), strict=True):
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        with torch.no_grad():
            logits_TV = model(input_ids=ids[None], use_cache=False).logits[0, len(sample.prompt_ids) - 1 : -1]
        targets_R1 = ids[len(sample.prompt_ids) :, None]
        expected = (logits_TV / 0.7).log_softmax(-1).gather(1, targets_R1)[:, 0]
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)
    on_policy = Minibatch.of(own(learner, samples()))
    first = learner.train_minibatch(on_policy).metrics
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["ref_kl"] == pytest.approx(0.0, abs=1e-8)  # the reference is the policy, at the same temperature


@pytest.mark.parametrize("denominator", ["response", "token"])
def test_groups_without_signal_keep_their_kl_term(denominator: str) -> None:
    """R1 eq. 1 has -beta KL in every response: with all advantages 0 the loss is beta KL, worked out by hand."""
    learner = tiny_learner(kl_coef=0.1, denominator=denominator)
    reference = learner.logprobs(samples())
    learner.train_minibatch(Minibatch.of(samples()))
    policy = learner.logprobs(samples())
    idle = tuple(replace(sample, advantage=0.0) for sample in samples())
    ratios = [theirs - ours for ours, theirs in zip(policy, reference, strict=True)]
    kl = [np.exp(ratio.astype(np.float64)) - ratio - 1 for ratio in ratios]
    expected = np.mean([k.mean() for k in kl]) if denominator == "response" else np.concatenate(kl).mean()
    found = learner.train_minibatch(Minibatch.of(idle)).metrics
    assert found["loss"] == pytest.approx(0.1 * expected, rel=1e-3)
    assert found["grad_norm"] > 0
    assert found["ref_kl"] == pytest.approx(np.concatenate(kl).mean(), rel=1e-3)


@pytest.mark.parametrize("denominator", ["response", "token", "constant"])
def test_skipping_what_has_no_loss_changes_no_step(denominator: str) -> None:
    made = samples()
    idle = (replace(made[0], advantage=0.0), *made[1:4], *(replace(sample, advantage=0.0) for sample in made[4:]))
    whole = Minibatch.of(idle)
    nothing = replace(whole, samples=())
    found = []
    for skips in (False, True):
        learner = tiny_learner(kl_coef=0.0, denominator=denominator, bias_update_speed=0.0)
        some = replace(whole, samples=tuple(s for s in idle if s.advantage)) if skips else whole
        steps = [learner.train_minibatch(some).metrics for _ in range(2)]
        assert steps[0]["skipped_share"] == pytest.approx(6 / 9 if skips else 0.0)
        all_idle = Minibatch.of([replace(sample, advantage=0.0) for sample in made])
        steps.append(learner.train_minibatch(nothing if skips else all_idle).metrics)  # Adam's momentum still moves
        losses = [[step["loss"], step["grad_norm"]] for step in steps]
        found.append((losses, concatenated(learner.logprobs(made))))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)


def test_random_states_come_back_with_the_rest(tmp_path: Path) -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    learner = tiny_learner()
    drawn()
    learner.save(tmp_path)
    expected = drawn()
    assert drawn() != expected
    tiny_learner(1).load(tmp_path)
    assert drawn() == expected
