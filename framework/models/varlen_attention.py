"""Packed attention by one kernel of variable lengths: torch's flash attention on CUDA, where its head sizes allow.

Grouped queries need no repeated keys there, and rows of ever new lengths no new plans: scaled-dot-product attention by
cuDNN, which takes MLA's keys of 192 and values of 128 as they are, makes one for each shape (55 to 70 ms) and keeps it,
and packed rows bring new lengths all the time. So values that are narrower than keys get zeros up to their width, which
are cut off the output again: a fifth more multiply-adds for MLA, no plans, and the result is the same.

Dimensions: T tokens, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

LARGEST = 256  # head size of the kernel


def has_varlen_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel takes such queries and values, [1, H, T, D]: half precision, on CUDA, values not the wider."""
    size = query.shape[-1]
    return query.is_cuda and query.element_size() == 2 and value.shape[-1] <= size <= LARGEST and size % 8 == 0


def varlen_attention(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    asking: Sequence[int],
    lengths: Sequence[int],
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Attend within sequences of so many keys, [T, H, D]; their last `asking` positions have queries.

    Values may be narrower than keys. `window`: a position sees so many, itself included.
    """
    width, narrow = key_THD.shape[-1], value_THD.shape[-1]
    if narrow < width:
        value_THD = torch.nn.functional.pad(value_THD, (0, width - narrow))
    output = _kernel(query_THD, key_THD, value_THD, asking, lengths, scaling, window, causal)
    return output[..., :narrow]


def _kernel(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    asking: Sequence[int],
    lengths: Sequence[int],
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """One call of the kernel, of equal head sizes."""
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
