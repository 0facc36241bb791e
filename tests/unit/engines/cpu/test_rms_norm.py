"""The norm of the CPU learner is transformers' norm, values and gradients, and takes over its parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from framework.engines.cpu.rms_norm import FastRMSNorm, use_fast_norms
from framework.models.spec import build_model
from tests.learners import TINY_V3


@pytest.mark.parametrize("shape", [(1, 7, 16), (5, 32), (2, 3, 4, 8)])
def test_values_and_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.randn(shape[-1], dtype=torch.float64))
    expected = weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    found = FastRMSNorm(weight, 1e-6)(x)
    torch.testing.assert_close(found, expected)
    for ours, formula in zip(
        torch.autograd.grad(found, [x, weight], grad), torch.autograd.grad(expected, [x, weight], grad), strict=True
    ):
        torch.testing.assert_close(ours, formula)


def test_bfloat16_is_rounded_once() -> None:
    torch.manual_seed(0)
    x, grad, weight = torch.randn(64, 32).bfloat16(), torch.randn(64, 32).bfloat16(), torch.randn(32).bfloat16()
    exact = [tensor.float().requires_grad_() for tensor in (x, weight)]
    ours = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected, found = (FastRMSNorm(w, 1e-6)(x) for x, w in (exact, ours))  # type: ignore[arg-type]
    expected.backward(grad.float())
    found.backward(grad)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    for rounded, value in zip(ours, exact, strict=True):
        assert rounded.grad is not None
        assert value.grad is not None
        assert torch.equal(rounded.grad, value.grad.bfloat16())


def test_a_transposed_input_and_gradient_are_taken() -> None:
    x = torch.randn(4, 3, 8, dtype=torch.float64).transpose(0, 1).requires_grad_()
    norm = FastRMSNorm(torch.nn.Parameter(torch.rand(8, dtype=torch.float64)), 1e-6)
    assert torch.autograd.gradcheck(lambda x: norm(x).transpose(0, 2), x)


def test_a_model_keeps_its_parameters_and_its_outputs() -> None:
    model = build_model(replace(TINY_V3, dtype="float32"), seed=0)
    tokens = torch.arange(12)[None]
    names, before = [name for name, _ in model.named_parameters()], model(tokens).logits
    parameters = {id(parameter) for parameter in model.parameters()}
    # Two a layer, two on the latents of each attention, one at the end.
    assert use_fast_norms(model) == 4 * model.config.num_hidden_layers + 1
    assert [name for name, _ in model.named_parameters()] == names
    assert {id(parameter) for parameter in model.parameters()} == parameters
    torch.testing.assert_close(model(tokens).logits, before)
    assert use_fast_norms(model) == 0


def test_norms_that_only_bear_the_name_stay() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    model = torch.nn.ModuleList([Gemma3RMSNorm(8), Qwen3RMSNorm(8)])
    assert use_fast_norms(model) == 1
    assert isinstance(model[0], Gemma3RMSNorm)
