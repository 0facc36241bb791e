"""Scores from hidden states equal those of the logits, in values and gradients, and hold no logits."""

import pytest
import torch

from framework.algorithms import projected_logprobs
from framework.algorithms.logprobs import TokenScores
from framework.algorithms.projected_logprobs import projected_scores

T, V, H = 150, 300, 8


def inputs(dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TH, weight_VH, bias_V = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((T, H), (V, H), (V,))
    )
    return hidden_TH, weight_VH, bias_V if bias else None, torch.randint(V, (T,), generator=generator)


def computed(
    monkeypatch: pytest.MonkeyPatch, kept: int, dtype: torch.dtype, bias: bool, temperature: float
) -> tuple[TokenScores, tuple[torch.Tensor, ...]]:
    """Scores and the gradients of their weighted sum; of chunks of 64 rows or columns, or of whole logits."""
    monkeypatch.setattr(projected_logprobs, "KEPT_ELEMENTS", {"cpu": kept})
    monkeypatch.setattr(projected_logprobs, "CHUNK_ELEMENTS", {"cpu": 1})
    given = inputs(dtype, bias)
    found = projected_scores(*given, temperature)
    leaves = [tensor for tensor in given[:3] if tensor is not None]
    weights_T = torch.linspace(-1, 2, T, dtype=found.logprobs_T.dtype)
    return found, torch.autograd.grad((found.logprobs_T * weights_T).sum(), leaves)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_equal_whole_logits(monkeypatch: pytest.MonkeyPatch, bias: bool, temperature: float) -> None:
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        whole, whole_gradients = computed(monkeypatch, T * V, dtype, bias, temperature)
        chunks, chunk_gradients = computed(monkeypatch, 0, dtype, bias, temperature)
        for ours, theirs in zip(chunks, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)
        assert not chunks.entropy_T.requires_grad
        for ours, theirs in zip(chunk_gradients, whole_gradients, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < bound


def test_bfloat16_is_normalised_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, whole_gradients = computed(monkeypatch, T * V, torch.bfloat16, True, 1.0)
    chunks, chunk_gradients = computed(monkeypatch, 0, torch.bfloat16, True, 1.0)
    assert chunks.logprobs_T.dtype == torch.float32
    torch.testing.assert_close(chunks.logprobs_T, whole.logprobs_T, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(chunk_gradients, whole_gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - theirs).float().norm() / theirs.float().norm()) < 5e-3


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        computed(monkeypatch, 0, torch.float32, True, 1.0)
    assert max(saved) == V * H


def test_a_frozen_weight_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected_logprobs, "KEPT_ELEMENTS", {"cpu": 0})
    hidden_TH, weight_VH, _, targets_T = inputs(torch.float32, False)
    projected_scores(hidden_TH, weight_VH.detach(), None, targets_T).logprobs_T.sum().backward()
    assert hidden_TH.grad is not None
    assert weight_VH.grad is None


def test_temperature_must_be_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected_logprobs, "KEPT_ELEMENTS", {"cpu": 0})
    with pytest.raises(ValueError, match="temperature"):
        projected_scores(*inputs(torch.float32, False), 0.0)
