"""Losses, logprobs, gradients and weights that are not finite: said at the first step, or left out and counted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.finite import first_bad_weight, name_samples
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.errors import NotFinite
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from framework.types import Minibatch, StepResult
from tests.distributed import run_ranks
from tests.learners import VOCAB, minibatch, samples, tiny_learner, tiny_model

pytestmark = pytest.mark.slow
BAD = ["sampler_logprobs", "advantage", "token_advantages"]


def bad_minibatch(field: str, value: float) -> Minibatch:
    made = list(samples())
    old = getattr(made[4], field)
    old = made[4].sampler_logprobs if old is None else old  # a critic's advantages, of each token
    made[4] = replace(made[4], **{field: value if isinstance(old, float) else np.full_like(old, value)})
    return Minibatch.of(made)


def trainer(skip: int = 0, lr: float = 1e-3, isolated: bool = False, **values: Any) -> Trainer[Any, Any]:
    config = DeepSpeedConfig(schedule=LrSchedule(lr=lr), token_budget=66, skip_nonfinite=skip, **values)
    return Trainer(tiny_model(), config, DocumentLm() if isolated else StreamLm())


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (6, 33), generator=torch.Generator().manual_seed(seed))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_unmoved(model: Any, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("field", BAD)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_sample_stops_the_first_step_by_name(field: str, value: float) -> None:
    learner = tiny_learner()
    before = weights(learner.engine.model)
    with pytest.raises(NotFinite, match=rf"step 1, rank 0 of 1: {field} of samples 'p4' is not finite"):
        learner.train_minibatch(bad_minibatch(field, value))
    assert_unmoved(learner.engine.model, before)


def test_logprobs_that_are_not_finite_are_seen_though_ratios_are_limited() -> None:
    learner = tiny_learner()
    with torch.no_grad():
        learner.engine.model.lm_head.weight[5] = math.inf
    with pytest.raises(NotFinite, match=r"step 1, rank 0 of 1: logprobs of samples 'p\d'.* is not finite"):
        learner.train_minibatch(minibatch())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_a_gradient_that_is_not_finite_is_named_and_does_not_move_the_weights(dtype: str, zero_stage: int) -> None:
    """The loss is finite: only a hook spoils what flows back into one matrix."""
    learner = tiny_learner(dtype=dtype, zero_stage=zero_stage)
    model: Any = learner.engine.model
    before = weights(model)
    model.model.layers[1].self_attn.o_proj.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NotFinite, match=r"the gradient of model\.layers\.1\.self_attn\.o_proj\.weight is not finite"):
        learner.train_minibatch(minibatch())
    assert_unmoved(model, before)


def test_so_many_steps_are_left_out_and_counted(tmp_path: Path) -> None:
    learner = tiny_learner(skip_nonfinite=2)
    before = weights(learner.engine.model)
    step = learner.train_minibatch(bad_minibatch("advantage", math.nan))
    assert step.metrics == {"lr": step.metrics["lr"], "tokens": step.metrics["tokens"], "skipped_nonfinite": 1.0}
    assert_unmoved(learner.engine.model, before)
    good = learner.train_minibatch(minibatch()).metrics
    assert good["skipped_nonfinite"] == 1
    assert math.isfinite(good["loss"])
    learner.save(tmp_path)
    resumed = tiny_learner(1, skip_nonfinite=2)
    resumed.load(tmp_path)  # the count goes on
    resumed.train_minibatch(bad_minibatch("advantage", math.inf))
    with pytest.raises(NotFinite, match=r"2 such steps were skipped before"):
        resumed.train_minibatch(bad_minibatch("advantage", math.inf))


def test_a_step_left_out_is_as_if_it_had_not_been() -> None:
    """Gradients, Adam's moments, expert counts: nothing of it is left."""
    plain, spoiled = tiny_learner(), tiny_learner(skip_nonfinite=1)
    plain.engine.steps = 1  # the learning rate of a step that counts
    spoiled.train_minibatch(bad_minibatch("advantage", math.nan))
    expected, found = (learner.train_minibatch(minibatch()) for learner in (plain, spoiled))
    assert found.metrics["grad_norm"] == pytest.approx(expected.metrics["grad_norm"], rel=1e-5)
    np.testing.assert_array_equal(expected.expert_load_LE, found.expert_load_LE)
    for ours, theirs in zip(plain.logprobs(samples()), spoiled.logprobs(samples()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("isolated", [True, False])
def test_supervised_training_names_its_rows(isolated: bool) -> None:
    made = trainer(isolated=isolated)
    model: Any = made.engine.model
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = math.nan
    bad = rows()
    bad[bad == 7] = 8
    bad[4, 3] = 7

    def step() -> StepResult:
        documents = [row.numpy().astype(np.int32) for row in bad]
        return made.step(Documents(documents)) if isolated else made.step(bad)

    kind = "document" if isolated else "row"
    with pytest.raises(NotFinite, match=rf"step 1, rank 0 of 1: the loss of samples .*'{kind} 4'.* is not finite"):
        step()


@pytest.mark.parametrize("train", ["pretraining", "grpo"])
def test_a_learning_rate_of_1e30_stops_at_its_first_step(train: str) -> None:
    """Before a checkpoint could be saved: the weights are finite still, but what is made of them is not."""
    learner, made = tiny_learner(lr=1e30), trainer(lr=1e30)
    with pytest.raises(NotFinite, match=r"step 1, rank 0 of 1: weight \S+ \(or its square\) is not finite"):
        learner.train_minibatch(minibatch()) if train == "grpo" else made.step(rows())


def test_a_weight_that_overflows_is_named_at_its_own_step() -> None:
    made = trainer(lr=1e38, weight_decay=100.0)
    with pytest.raises(NotFinite, match=r"step 1, rank 0 of 1: weight \S+ .*is not finite after the step"):
        made.step(rows())


def on_two_ranks(skip: int) -> tuple[str, bool]:
    """What a rank says, and whether its weights stayed, where the second rank alone meets a bad row."""
    made = trainer(skip)
    before = weights(made.engine.model)
    if made.engine.rank == 1:
        model: Any = made.engine.model
        model.model.norm.register_forward_hook(lambda _module, _inputs, output: output * math.nan)
    said = ""
    try:
        made.step(rows())
    except NotFinite as error:
        said = str(error)
    return said, all(torch.equal(before[name], p) for name, p in made.engine.model.named_parameters())


def test_ranks_agree_on_what_one_of_them_found() -> None:
    for said, unmoved in run_ranks(on_two_ranks, 2, 0):
        assert said.startswith("step 1, rank 1 of 2: the loss of samples 'row 1'")
        assert unmoved
    assert run_ranks(on_two_ranks, 2, 1) == [("", True), ("", True)]


def test_names() -> None:
    assert name_samples(["a", "b"]) == "samples 'a', 'b'"
    assert name_samples(list("abcdef")) == "samples 'a', 'b', 'c', 'd' and 2 more"
    tensors = [("a", torch.ones(2)), ("none", torch.ones(0)), ("b", torch.tensor([1.0, -math.inf]))]
    assert first_bad_weight(tensors) == "b"
    assert first_bad_weight(tensors[:2]) == ""
    for number, found in ((math.nan, "c"), (1e30, "c"), (-1e30, "c"), (1e18, "")):
        assert first_bad_weight([("c", torch.tensor([0.0, number]))]) == found
