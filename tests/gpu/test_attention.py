"""Packed attention in bfloat16 against float32 on the CPU, both ways: GQA of head size 128, MLA's 192 and 128."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from framework.models.packed_attention import SegmentLayout, packed_attention
from framework.models.shared_prefixes import shared_prefixes
from framework.models.varlen_attention import has_varlen_kernel
from tests.gpu import devices

LENGTHS = [300, 300, 97, 40]


def layout(shared: bool) -> SegmentLayout:
    """Segments that begin alike, or not."""
    plain = SegmentLayout.of_lengths(LENGTHS)
    start, ids = torch.arange(32), [torch.arange(length) + 1000 * i for i, length in enumerate(LENGTHS)]
    row_T = torch.cat([torch.cat([start, one[32:]]) for one in ids])
    return replace(plain, shared=shared_prefixes(row_T, LENGTHS)) if shared else plain


def attended(
    device: str, dtype: torch.dtype, heads: tuple[int, int], widths: tuple[int, int], shared: bool, window: int | None
) -> list[torch.Tensor]:
    """The output and the gradients of queries, keys and values."""
    segments = layout(shared)
    if segments.shared is not None:
        moved = {name: tensor.to(device) for name, tensor in vars(segments.shared).items() if torch.is_tensor(tensor)}
        segments = replace(segments, shared=replace(segments.shared, **moved))
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads[0], widths[0]), (heads[1], widths[0]), (heads[1], widths[1])]
    drawn = [torch.randn(1, n, segments.n_tokens, width, generator=generator) for n, width in shapes]
    states = [x.to(device, dtype).requires_grad_() for x in drawn]
    output, _ = packed_attention(
        torch.nn.Module(), *states, None, scaling=0.08, segments=segments, sliding_window=window
    )
    weights = torch.randn(output.shape, generator=generator).to(device, dtype)
    return [x.detach().float().cpu() for x in (output, *torch.autograd.grad((output * weights).sum(), states))]


@devices()
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize(("heads", "widths"), [((8, 2), (128, 128)), ((8, 8), (128, 128)), ((4, 4), (192, 128))])
def test_bfloat16_is_float32_on_the_cpu(
    device: str, heads: tuple[int, int], widths: tuple[int, int], window: int | None, shared: bool
) -> None:
    probe = torch.empty(1, 1, 1, widths[0], device=device, dtype=torch.bfloat16)
    assert has_varlen_kernel(probe, probe[..., : widths[1]]) == (device == "cuda")
    found = attended(device, torch.bfloat16, heads, widths, shared, window)
    expected = attended("cpu", torch.float32, heads, widths, shared, window)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 2e-2
