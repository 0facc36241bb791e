"""The kernel of variable lengths, which only CUDA has, by a stand-in that wants what it wants: equal head sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from framework.models import packed_attention as packed
from framework.models import varlen_attention as varlen
from framework.models.packed_attention import SegmentLayout, packed_attention
from framework.models.shared_prefixes import shared_prefixes

LENGTHS = [9, 9, 5, 2]
KEYS, VALUES = 12, 8  # MLA's 192 and 128


def kernel(
    query_THD: torch.Tensor,
    key_THD: torch.Tensor,
    value_THD: torch.Tensor,
    asking: Sequence[int],
    lengths: Sequence[int],
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> torch.Tensor:
    """Each sequence for itself, under a mask."""
    assert query_THD.shape[-1] == key_THD.shape[-1] == value_THD.shape[-1]
    outputs = []
    places = zip(torch.split(query_THD, list(asking)), torch.split(key_THD, list(lengths)),
                 torch.split(value_THD, list(lengths)), strict=True)  # fmt: skip
    for query, *states in places:
        key, value = (x.transpose(0, 1) for x in states)
        seen = torch.ones(len(query), key.shape[1], dtype=torch.bool)
        if causal:
            seen = seen.tril(key.shape[1] - len(query))
        if window is not None:
            seen = seen.triu(key.shape[1] - len(query) - window + 1)
        out = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1), key, value, seen, scale=scaling, enable_gqa=query.shape[1] != key.shape[0]
        )
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("values", [KEYS, VALUES])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_values_narrower_than_keys_are_attended_to_as_they_are(
    monkeypatch: pytest.MonkeyPatch, shared: bool, window: int | None, values: int, kv_heads: int
) -> None:
    monkeypatch.setattr(varlen, "_kernel", kernel)
    segments = SegmentLayout.of_lengths(LENGTHS)
    if shared:
        ids_T = torch.cat([torch.tensor([0, 1, *range(10 * i + 2, 10 * i + n)]) for i, n in enumerate(LENGTHS)])
        segments = replace(segments, shared=shared_prefixes(ids_T, LENGTHS))
        assert segments.shared is not None
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, KEYS), (kv_heads, KEYS), (kv_heads, values)]
    states = [
        torch.randn(1, heads, segments.n_tokens, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, width in sizes
    ]
    found = []
    for has in (True, False):
        monkeypatch.setattr(packed, "has_varlen_kernel", lambda *_, has=has: has)
        output, _ = packed_attention(
            torch.nn.Module(), *states, None, scaling=0.3, segments=segments, sliding_window=window
        )
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        found.append([output, *torch.autograd.grad((output * weights).sum(), states)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("keys", "values", "dtype", "takes"),
    [
        (192, 128, torch.bfloat16, True),
        (128, 128, torch.bfloat16, True),
        (128, 192, torch.bfloat16, False),
        (512, 128, torch.bfloat16, False),
        (12, 8, torch.bfloat16, False),
        (192, 128, torch.float32, False),
    ],
)
def test_which_heads_the_kernel_takes(keys: int, values: int, dtype: torch.dtype, takes: bool) -> None:
    class OnCuda:
        is_cuda = True
        shape = (1, 1, 1, keys)

        def element_size(self) -> int:
            return dtype.itemsize

    value = torch.empty(1, 1, 1, values)
    assert varlen.has_varlen_kernel(OnCuda(), value) == takes  # type: ignore[arg-type]
    assert not varlen.has_varlen_kernel(torch.empty(1, 1, 1, keys, dtype=dtype), value), "not on a CPU"
