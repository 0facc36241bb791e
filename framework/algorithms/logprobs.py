"""Log-probabilities of given tokens from logits, without a float32 copy of the whole [T, V] matrix.

Dimensions: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.functional import cross_entropy

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 23}  # logits upcast at a time; on a CPU what stays in its caches


def token_logprobs(logits_TV: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return log softmax(logits / temperature) at the targets, [T], in float32 (float64 for float64 logits).

    Forward and backward work on chunks of T, so beside the logits and their gradient (both in the logits' dtype) no
    [T, V] tensor exists. Not differentiable twice. Raises ValueError if the temperature is not positive.
    """
    if isinstance(logits_TV, DTensor):
        return _cut_logprobs(logits_TV, targets_T, temperature)
    return logprobs_and_entropy(logits_TV, targets_T, temperature)[0]


def _cut_logprobs(logits_TV: DTensor, targets_T: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same of logits that are cut over the vocabulary: only sums over it travel. Its backward needs the context."""
    scaled_TV = logits_TV if temperature == 1 else logits_TV / temperature
    with loss_parallel():
        nll: Any = cross_entropy(scaled_TV, targets_T, reduction="none")
    whole_T: torch.Tensor = nll.full_tensor()
    return -whole_T


def logprobs_and_entropy(
    logits_TV: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `token_logprobs` and, from the same pass, the entropy [T] in nats: a metric that carries no gradient."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logprobs_T, entropy_T = _TokenLogprobs.apply(logits_TV, targets_T, temperature)  # type: ignore[no-untyped-call]
    return logprobs_T, entropy_T


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _scaled(logits_CV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits / temperature in an accurate dtype; at temperature 1 float32 logits are not copied."""
    accurate_CV = logits_CV.to(_accurate(logits_CV.dtype))
    return accurate_CV if temperature == 1 else accurate_CV / temperature


def _chunks(logits_TV: torch.Tensor) -> Iterator[slice]:
    length, vocabulary = logits_TV.shape
    step = max(1, CHUNK_ELEMENTS[logits_TV.device.type] // vocabulary)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: torch.Tensor, targets_T: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_normalizer_T = torch.empty(logits_TV.shape[0], dtype=_accurate(logits_TV.dtype), device=logits_TV.device)
        entropy_T = torch.empty_like(log_normalizer_T)
        chosen_T = logits_TV.gather(-1, targets_T[:, None]).squeeze(-1).to(log_normalizer_T.dtype) / temperature
        for rows in _chunks(logits_TV):
            scaled_CV = _scaled(logits_TV[rows], temperature)
            highest_C1 = scaled_CV.amax(-1, keepdim=True)
            below_CV = scaled_CV - highest_C1
            weights_CV = below_CV.exp()
            sum_C = weights_CV.sum(-1)
            # A token ruled out by a -inf logit has weight 0 and must count 0, not 0 * -inf.
            mean_C = torch.linalg.vecdot(weights_CV, below_CV.clamp_min_(-1e4)) / sum_C
            log_normalizer_T[rows] = sum_C.log() + highest_C1.squeeze(-1)
            entropy_T[rows] = sum_C.log_() - mean_C
        ctx.save_for_backward(logits_TV, targets_T, log_normalizer_T)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_T)
        return chosen_T - log_normalizer_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: torch.Tensor, _entropy: None) -> tuple[torch.Tensor, None, None]:
        logits_TV, targets_T, log_normalizer_T = ctx.saved_tensors
        grad_TV = torch.empty_like(logits_TV)
        scaled_grad_T = grad_T.to(log_normalizer_T.dtype) / ctx.temperature
        for rows in _chunks(logits_TV):
            # d logprob / d logits = (onehot(target) - softmax) / temperature
            chunk_CV = _scaled(logits_TV[rows], ctx.temperature) - log_normalizer_T[rows, None]
            chunk_CV.exp_().mul_(-scaled_grad_T[rows, None])
            chunk_CV.scatter_add_(-1, targets_T[rows, None], scaled_grad_T[rows, None])
            grad_TV[rows] = chunk_CV.to(grad_TV.dtype)
        return grad_TV, None, None
