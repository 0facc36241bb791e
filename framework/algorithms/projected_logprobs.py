"""Log-probabilities of given tokens from hidden states: the logits of a long row never exist as a whole.

Dimensions: T tokens, V vocabulary, H hidden size, C rows or columns of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from framework.algorithms.logprobs import TokenScores, accurate, finished, scaled, summary, token_scores

# Logits of so many elements are kept for the backward pass; of more, a chunk is computed at a time, and again there.
KEPT_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}  # more where a chunk would have fewer than LEAST rows or columns
LEAST = 64  # rows or columns of a chunk: narrower matrix products are slow


def projected_scores(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_T: torch.Tensor,
    temperature: float = 1.0,
) -> TokenScores:
    """Return what `token_scores` does of the logits `hidden @ weight.T + bias`.

    Logits have the hidden states' dtype and are normalised in float32, as there. Beyond `KEPT_ELEMENTS` of them the
    forward goes over chunks of rows. The backward goes over chunks of the vocabulary, so that each row of the weight's
    gradient is one product over all tokens and nothing but the hidden states' gradient is accumulated, in float32.
    Not differentiable twice. Raises ValueError if the temperature is not positive.
    """
    if len(hidden_TH) * len(weight_VH) <= KEPT_ELEMENTS[hidden_TH.device.type]:
        return token_scores(linear(hidden_TH, weight_VH, bias_V), targets_T, temperature)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    found = _Projected.apply(hidden_TH, weight_VH, bias_V, targets_T, temperature)  # type: ignore[no-untyped-call]
    return TokenScores(*found)


def chunk_size(length: int, width: int, device: str) -> int:
    """Of `length` rows (columns) of a matrix whose other side is `width`, how many make a chunk."""
    return min(length, max(LEAST, CHUNK_ELEMENTS[device] // max(width, 1)))


def _chunks(length: int, width: int, device: torch.device) -> list[slice]:
    step = chunk_size(length, width, device.type)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_T: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, ...]:
        length, vocabulary = len(hidden_TH), len(weight_VH)
        found_4T = torch.empty(4, length, dtype=accurate(hidden_TH.dtype), device=hidden_TH.device)
        for rows in _chunks(length, vocabulary, hidden_TH.device):
            scaled_CV = scaled(linear(hidden_TH[rows], weight_VH, bias_V), temperature)
            found_4T[0, rows] = scaled_CV.gather(-1, targets_T[rows, None]).squeeze(-1)
            found_4T[1:, rows] = summary(scaled_CV)
        ctx.save_for_backward(hidden_TH, weight_VH, bias_V, targets_T, found_4T[3])
        ctx.temperature = temperature
        return finished(ctx, *found_4T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: torch.Tensor, *_: None) -> tuple[torch.Tensor | None, ...]:
        hidden_TH, weight_VH, bias_V, targets_T, normalizer_T = ctx.saved_tensors
        scaled_grad_T = grad_T.to(normalizer_T.dtype) / ctx.temperature
        grad_TH = torch.zeros_like(hidden_TH, dtype=normalizer_T.dtype)
        grad_VH = torch.empty_like(weight_VH) if ctx.needs_input_grad[1] else None
        grad_V = torch.empty_like(bias_V) if bias_V is not None else None
        for columns in _chunks(len(weight_VH), len(hidden_TH), hidden_TH.device):
            bias_C = None if bias_V is None else bias_V[columns]
            # d logprob / d logits = (onehot(target) - softmax) / temperature
            chunk_TC = scaled(linear(hidden_TH, weight_VH[columns], bias_C), ctx.temperature)
            chunk_TC.sub_(normalizer_T[:, None]).exp_().mul_(-scaled_grad_T[:, None])
            place_T = targets_T - columns.start
            inside_T = (place_T >= 0) & (place_T < chunk_TC.shape[1])
            at_T1 = place_T.clamp(0, chunk_TC.shape[1] - 1)[:, None]
            chunk_TC.scatter_add_(1, at_T1, torch.where(inside_T, scaled_grad_T, 0.0)[:, None])
            logits_grad_TC = chunk_TC.to(hidden_TH.dtype)
            grad_TH += logits_grad_TC @ weight_VH[columns]
            if grad_VH is not None:
                torch.mm(logits_grad_TC.T, hidden_TH, out=grad_VH[columns])
            if grad_V is not None:
                grad_V[columns] = logits_grad_TC.sum(0)
            del chunk_TC, logits_grad_TC  # before the next ones are made
        return grad_TH.to(hidden_TH.dtype), grad_VH, grad_V, None, None
