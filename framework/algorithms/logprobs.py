"""Log-probabilities of given tokens from logits, without a float32 copy of the whole [T, V] matrix.

Dimensions: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.functional import cross_entropy

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 23}  # logits upcast at a time; on a CPU what stays in its caches


class TokenScores(NamedTuple):
    """What a softmax says of one given token a position."""

    logprobs_T: torch.Tensor  # differentiable
    entropy_T: torch.Tensor  # of the distribution, nats; no gradient
    first_T: torch.Tensor  # 1 where no token is likelier, else 0; no gradient


def token_logprobs(logits_TV: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return the logprobs of `token_scores` alone, [T]."""
    return token_scores(logits_TV, targets_T, temperature).logprobs_T


def token_scores(logits_TV: torch.Tensor, targets_T: torch.Tensor, temperature: float = 1.0) -> TokenScores:
    """Return log softmax(logits / temperature) at the targets, in float32 (float64 for float64 logits), and the rest.

    Forward and backward work on chunks of T, so beside the logits and their gradient (both in the logits' dtype) no
    [T, V] tensor exists. Not differentiable twice. Raises ValueError if the temperature is not positive.
    """
    if isinstance(logits_TV, DTensor):
        return _cut_scores(logits_TV, targets_T, temperature)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return TokenScores(*_TokenScores.apply(logits_TV, targets_T, temperature))  # type: ignore[no-untyped-call]


def _cut_scores(logits_TV: DTensor, targets_T: torch.Tensor, temperature: float) -> TokenScores:
    """The same of logits that are cut over the vocabulary: only sums over it travel. Its backward needs the context.

    Nobody asks for the rest, which is not computed: NaN.
    """
    scaled_TV = logits_TV if temperature == 1 else logits_TV / temperature
    with loss_parallel():
        nll: Any = cross_entropy(scaled_TV, targets_T, reduction="none")
    whole_T: torch.Tensor = nll.full_tensor()
    unknown_T = torch.full_like(whole_T.detach(), torch.nan)
    return TokenScores(-whole_T, unknown_T, unknown_T)


def accurate(dtype: torch.dtype) -> torch.dtype:
    """The dtype that logits of this one are normalised in."""
    return torch.promote_types(dtype, torch.float32)


def scaled(logits_CV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits / temperature in an accurate dtype; at temperature 1 float32 logits are not copied."""
    accurate_CV = logits_CV.to(accurate(logits_CV.dtype))
    return accurate_CV if temperature == 1 else accurate_CV / temperature


def summary(scaled_CV: torch.Tensor) -> torch.Tensor:
    """Return the highest logit, the entropy in nats and the log of the softmax's normaliser, [3, C]."""
    highest_C1 = scaled_CV.amax(-1, keepdim=True)
    below_CV = scaled_CV - highest_C1
    weights_CV = below_CV.exp()
    sum_C = weights_CV.sum(-1)
    # A token ruled out by a -inf logit has weight 0 and must count 0, not 0 * -inf.
    mean_C = torch.linalg.vecdot(weights_CV, below_CV.clamp_min_(-1e4)) / sum_C
    log_sum_C, highest_C = sum_C.log_(), highest_C1.squeeze(-1)
    return torch.stack([highest_C, log_sum_C - mean_C, log_sum_C + highest_C])


def finished(
    ctx: Any, chosen_T: torch.Tensor, highest_T: torch.Tensor, entropy_T: torch.Tensor, log_normalizer_T: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the fields of TokenScores, as outputs of a function whose context is `ctx`."""
    first_T, entropy_T = (chosen_T >= highest_T).to(chosen_T.dtype), entropy_T.clone()
    ctx.mark_non_differentiable(entropy_T, first_T)
    return chosen_T - log_normalizer_T, entropy_T, first_T


def _chunks(logits_TV: torch.Tensor) -> Iterator[slice]:
    length, vocabulary = logits_TV.shape
    step = max(1, CHUNK_ELEMENTS[logits_TV.device.type] // vocabulary)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: torch.Tensor, targets_T: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, ...]:
        found_3T = torch.empty(3, len(logits_TV), dtype=accurate(logits_TV.dtype), device=logits_TV.device)
        chosen_T = logits_TV.gather(-1, targets_T[:, None]).squeeze(-1).to(found_3T.dtype) / temperature
        for rows in _chunks(logits_TV):
            found_3T[:, rows] = summary(scaled(logits_TV[rows], temperature))
        highest_T, entropy_T, log_normalizer_T = found_3T
        ctx.save_for_backward(logits_TV, targets_T, log_normalizer_T)
        ctx.temperature = temperature
        return finished(ctx, chosen_T, highest_T, entropy_T, log_normalizer_T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_T: torch.Tensor, *_: None) -> tuple[torch.Tensor, None, None]:
        logits_TV, targets_T, log_normalizer_T = ctx.saved_tensors
        grad_TV = torch.empty_like(logits_TV)
        scaled_grad_T = grad_T.to(log_normalizer_T.dtype) / ctx.temperature
        for rows in _chunks(logits_TV):
            # d logprob / d logits = (onehot(target) - softmax) / temperature
            chunk_CV = scaled(logits_TV[rows], ctx.temperature) - log_normalizer_T[rows, None]
            chunk_CV.exp_().mul_(-scaled_grad_T[rows, None])
            chunk_CV.scatter_add_(-1, targets_T[rows, None], scaled_grad_T[rows, None])
            grad_TV[rows] = chunk_CV.to(grad_TV.dtype)
        return grad_TV, None, None
