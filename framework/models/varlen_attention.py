"""Packed attention by one kernel of variable lengths: torch's flash attention on CUDA, where its head sizes allow.

Grouped queries need no repeated keys there, and rows of ever new lengths no new plans. Dimensions: T tokens, H heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

LARGEST = 256  # head size of the kernel


def has_varlen_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel takes such queries and values, [1, H, T, D]: half precision, equal head sizes, on CUDA."""
    size = query.shape[-1]
    return query.is_cuda and query.element_size() == 2 and size == value.shape[-1] <= LARGEST and size % 8 == 0


def varlen_attention(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    asking: Sequence[int],
    lengths: Sequence[int],
    scaling: float | None,
    window: int | None,
    causal: bool = True,
) -> torch.Tensor:
    """Attend within sequences of so many keys, [T, H, D]; their last `asking` positions have queries.

    `window`: a position sees so many, itself included.
    """
    from torch.nn.attention.varlen import varlen_attn

    def starts(counts: Sequence[int]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=query_THD.device)

    # Windows are aligned to the last query and key, as flash attention 2 has it.
    seen = (-1 if window is None else window - 1, 0 if causal else -1)
    output = varlen_attn(
        query_THD, key_THD, value_THD, starts(asking), starts(lengths), max(asking), max(lengths),
        scale=scaling, window_size=seen, enable_gqa=query_THD.shape[1] != key_THD.shape[1],
    )  # fmt: skip
    assert isinstance(output, torch.Tensor)
    return output
