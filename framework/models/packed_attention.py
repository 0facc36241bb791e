"""Attention over packed rows: each segment attends to itself alone, and no T x T mask is ever built.

Causally, or both ways where transformers' module says `is_causal = False`: encoders.

Registered with transformers' AttentionInterface, so any model of its library that routes attention through it (MLA,
GQA) runs packed, forward and backward. The row is split into runs of equally long segments and each run is one causal
scaled-dot-product call on views: no pads, no gather, no index tensors. (Right-padded buckets of similar lengths save
calls, but their pads and gathers cost more than that at every size tried.) The same code runs on CPU and CUDA, where
PyTorch picks the kernel. `data.packing` sorts segments by length, which makes the runs long.

Dimensions: T tokens of the packed row, H heads, D head size (values may have another than keys), V vocabulary,
N segments of a run, L its length, K trained positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from framework.algorithms.logprobs import logprobs_and_entropy
from framework.models.masked_heads import HEADS
from framework.models.shared_prefixes import SharedPrefixes, shared_prefixes
from framework.types import MicroBatch

NAME = "packed"
NOT_BUILT = ("softcap", "s_aux")  # of attention: a cap on its logits, sinks


@dataclass(frozen=True)
class SegmentLayout:
    """The runs of equally long segments of a packed row; made once for a micro-batch, passed to every layer."""

    runs: tuple[tuple[int, int], ...]  # (N, L) of each, in row order
    shared: SharedPrefixes | None = None  # the model runs on its nodes, attention on the whole row

    @classmethod
    def of_lengths(cls, lengths: Iterable[int]) -> SegmentLayout:
        """Return the layout of segments of these lengths, in row order."""
        return cls(tuple((len(list(run)), length) for length, run in groupby(lengths)))

    @classmethod
    def of(cls, micro: MicroBatch) -> SegmentLayout:
        """Return the layout of a micro-batch, equal prefixes of its segments shared where that pays."""
        lengths = micro.segment_lengths_S.tolist()
        return replace(cls.of_lengths(lengths), shared=shared_prefixes(micro.token_ids_T, lengths))

    @property
    def n_tokens(self) -> int:
        """What the model runs on: T, or as many as there are nodes."""
        if self.shared is not None:
            return self.shared.position_U.numel()
        return sum(rows * length for rows, length in self.runs)


@dataclass(frozen=True)
class PackedLogprobs:
    """What the policy loss needs of one forward; zeros at positions that are not trained."""

    logprobs_T: torch.Tensor  # float32, differentiable
    entropy_T: torch.Tensor | None  # float32, nats, no gradient


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: SegmentLayout | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within segments; transformers' attention signature: query [1, H, T, D] to output [1, T, H, D].

    `sliding_window`: a position sees so many, itself included, as Gemma 3's and Mistral's layers say.
    Raises ValueError without `segments`, or for what a packed row cannot have (a mask, a batch, a cache).
    """
    if segments is None or attention_mask is not None:
        raise ValueError("packed attention needs segments=SegmentLayout and no mask: use forward_packed")
    if others := sorted(key for key in NOT_BUILT if more.get(key) is not None):
        raise ValueError(f"packed attention has no {', '.join(others)}")
    heads, n_tokens = query.shape[1:3]
    if query.shape[0] != 1 or n_tokens != segments.n_tokens or key.shape[2] != n_tokens:
        raise ValueError(f"layout of {segments.n_tokens} tokens, query {tuple(query.shape)}, key {tuple(key.shape)}")
    shared = segments.shared
    if shared is not None:
        key, value = key.index_select(2, shared.node_T), value.index_select(2, shared.node_T)
        query = query.index_select(2, shared.node_Q)
    causal = bool(getattr(module, "is_causal", True))
    if not causal and (shared is not None or sliding_window is not None):
        raise ValueError("packed attention both ways shares no prefixes and has no window")
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # One split for all runs: its backward is one concatenation, where slices would each add into a whole row of zeros.
    common = 0 if shared is None else shared.common
    q_prefix, *q_runs = torch.split(
        query[0], [common, *(rows * (length - common) for rows, length in segments.runs)], 1
    )
    k_runs, v_runs = (torch.split(x[0], [rows * length for rows, length in segments.runs], 1) for x in (key, value))
    outputs = []
    if common:  # what all segments begin with attends to itself, once
        k, v = k_runs[0][:, :common], v_runs[0][:, :common]
        mask = _visible(common, 0, sliding_window, query.device)
        outputs.append(
            scaled_dot_product_attention(q_prefix, k, v, mask, dropout_p=dropout, scale=scaling, is_causal=mask is None)
        )
    for (rows, length), *states in zip(segments.runs, q_runs, k_runs, v_runs, strict=True):
        # Heads as the batch and segments as the "heads": both are independent, and so nothing is transposed.
        q, k, v = (x.view(heads, rows, -1, x.shape[-1]) for x in states)
        mask = _visible(length, common, sliding_window, query.device)
        ahead = causal and mask is None
        output = scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, scale=scaling, is_causal=ahead)
        outputs.append(output.flatten(1, 2))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)  # [H, T, D]
    if shared is not None:
        merged = merged.index_select(1, shared.place_U)
    return merged.transpose(0, 1).unsqueeze(0).contiguous(), None


def _visible(length: int, first: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """[L - first, L]: what each position from `first` on may see; None if that is everything before it from 0 on."""
    if not first and (window is None or window >= length):
        return None
    seen = torch.ones(length - first, length, dtype=torch.bool, device=device).tril(first)
    return seen if window is None else seen.triu(first - window + 1)


def use_packed_attention(model: Any) -> None:
    """Make a transformers model attend through `packed_attention`; afterwards run it by the functions below only.

    No mask function is registered under the name, and so transformers builds no mask. Undo it by
    model.set_attn_implementation("sdpa"). An encoder that does not attend through transformers' interface stays as it
    is: `models.masked_heads` masks it.
    """
    from transformers import AttentionInterface

    if type(model).__name__ in HEADS and not model._supports_attention_backend:
        return

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def forward_packed(
    model: Any, micro: MicroBatch, layout: SegmentLayout | None = None, keep_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Return logits_TV of a packed micro-batch; `model` has been through `use_packed_attention`, or wraps one that has.

    `keep_K` (int64 positions) computes logits_KV there only. Pass a `layout` to share it between forwards.
    """
    layout = layout or SegmentLayout.of(micro)
    token_ids, position_ids, keep, more = micro.token_ids_T, micro.position_ids_T, keep_K, dict[str, Any]()
    if layout.shared is not None:
        token_ids, position_ids = token_ids[layout.shared.position_U], position_ids[layout.shared.position_U]
        keep = layout.shared.node_T if keep is None else layout.shared.node_T[keep]
    if keep is not None:
        more["logits_to_keep"] = keep
    output = model(input_ids=token_ids[None], position_ids=position_ids[None], use_cache=False, segments=layout, **more)
    logits_TV: torch.Tensor = output.logits[0]
    return logits_TV


def packed_logprobs(
    model: Any,
    micro: MicroBatch,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    layout: SegmentLayout | None = None,
) -> PackedLogprobs:
    """Run the model and return log pi(target) at the trained positions.

    The vocabulary projection runs on the trained positions only: prompts cost no logits. A micro-batch that trains
    nothing still runs forward and backward, and gives every parameter that it reaches a zero gradient.
    """
    kept_K = micro.mask_T.nonzero().squeeze(-1)
    logits_KV = forward_packed(model, micro, layout, kept_K)

    def spread(values_K: torch.Tensor) -> torch.Tensor:
        row_T = torch.zeros(micro.mask_T.shape, dtype=values_K.dtype, device=values_K.device)
        return row_T.index_put((kept_K,), values_K)

    logprobs_K, entropy_K = logprobs_and_entropy(logits_KV, micro.targets_T[kept_K], temperature)
    return PackedLogprobs(spread(logprobs_K), spread(entropy_K) if entropy else None)
