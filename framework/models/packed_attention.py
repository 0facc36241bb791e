"""Attention over packed rows: each segment attends to itself alone, and no T x T mask is ever built.

Causally, or both ways where transformers' module says `is_causal = False`: encoders.

Registered with transformers' AttentionInterface, so any model of its library that routes attention through it (MLA,
GQA) runs packed, forward and backward. The row is split into runs of equally long segments and each run is one causal
scaled-dot-product call on views: no pads, no gather, no index tensors. (Right-padded buckets of similar lengths save
calls, but their pads and gathers cost more than that at every size tried.) `data.packing` sorts segments by length,
which makes the runs long. On CUDA one kernel of variable lengths does it in half precision (`varlen_attention`).

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

from framework.models.masked_heads import HEADS
from framework.models.output_head import Asked, scores_of, use_output_head
from framework.models.sequence_parallel import SequenceShard
from framework.models.shared_prefixes import SharedPrefixes, shared_prefixes
from framework.models.varlen_attention import has_varlen_kernel, varlen_attention
from framework.types import MicroBatch

NAME = "packed"
QUERIES = 1024  # that a mask is made for at a time
NOT_BUILT = ("softcap", "s_aux")  # of attention: a cap on its logits, sinks


@dataclass(frozen=True)
class SegmentLayout:
    """The runs of equally long segments of a packed row; made once for a micro-batch, passed to every layer."""

    runs: tuple[tuple[int, int], ...]  # (N, L) of each, in row order
    shared: SharedPrefixes | None = None  # the model runs on its nodes, attention on the whole row
    shard: SequenceShard | None = None  # of the tokens (nodes) that the model runs on; None: all are here

    @classmethod
    def of_lengths(cls, lengths: Iterable[int]) -> SegmentLayout:
        """Return the layout of segments of these lengths, in row order."""
        return cls(tuple((len(list(run)), length) for length, run in groupby(lengths)))

    @classmethod
    def of(cls, micro: MicroBatch) -> SegmentLayout:
        """Return the layout of a micro-batch, equal prefixes of its segments shared where that pays."""
        lengths = micro.segment_lengths_S.tolist()
        return replace(cls.of_lengths(lengths), shared=shared_prefixes(micro.token_ids_T, lengths))

    def spread(self, group: Any) -> SegmentLayout:
        """Return the layout of this rank's part of the row, the others' being on the other ranks of the group."""
        return replace(self, shard=SequenceShard.of(self.whole_tokens, group))

    @property
    def n_tokens(self) -> int:
        """What the model runs on here."""
        return self.whole_tokens if self.shard is None else self.shard.n_tokens

    @property
    def whole_tokens(self) -> int:
        """What the model runs on, on all ranks of a group: T, or as many as there are nodes."""
        if self.shared is not None:
            return self.shared.position_U.numel()
        return sum(rows * length for rows, length in self.runs)


@dataclass(frozen=True)
class _Sight:
    """How the positions of a segment attend to each other."""

    scaling: float | None
    window: int | None  # a position sees so many, itself included
    causal: bool  # else both ways
    dropout: float


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
    n_tokens = query.shape[2]
    if query.shape[0] != 1 or n_tokens != segments.n_tokens or key.shape[2] != n_tokens:
        raise ValueError(f"layout of {segments.n_tokens} tokens, query {tuple(query.shape)}, key {tuple(key.shape)}")
    shared, shard = segments.shared, segments.shard
    if shard is not None:
        query, key, value = (shard.to_heads(x[0])[None] for x in (query, key, value))
    if shared is not None:
        key, value = key.index_select(2, shared.node_T), value.index_select(2, shared.node_T)
        query = query.index_select(2, shared.node_Q)
    causal = bool(getattr(module, "is_causal", True))
    if not causal and (shared is not None or sliding_window is not None):
        raise ValueError("packed attention both ways shares no prefixes and has no window")
    attend = _by_varlen if has_varlen_kernel(query, value) and not dropout else _by_runs
    sight = _Sight(scaling, sliding_window, causal, dropout)
    merged = attend(query[0], key[0], value[0], segments, sight)  # [H, T, D]
    if shared is not None:
        merged = merged.index_select(1, shared.place_U)
    if shard is not None:
        merged = shard.to_tokens(merged)
    return merged.transpose(0, 1).unsqueeze(0).contiguous(), None


def _by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: SegmentLayout,
    sight: _Sight,
) -> torch.Tensor:
    """A call for each run of equally long segments; all [H, T, D]."""
    common = 0 if segments.shared is None else segments.shared.common
    # One split for all runs: its backward is one concatenation, where slices would each add into a whole row of zeros.
    q_prefix, *q_runs = torch.split(query, [common, *(rows * (length - common) for rows, length in segments.runs)], 1)
    k_runs, v_runs = (torch.split(x, [rows * length for rows, length in segments.runs], 1) for x in (key, value))
    outputs = []
    if common:  # what all segments begin with attends to itself, once
        q, k, v = (x[None] for x in (q_prefix, k_runs[0][:, :common], v_runs[0][:, :common]))
        outputs.append(_attended(q, k, v, sight)[0])
    for (rows, _), *states in zip(segments.runs, q_runs, k_runs, v_runs, strict=True):
        if query.shape[0] == key.shape[0]:
            # Heads as the batch and segments as the "heads": both are independent, and so nothing is transposed.
            q, k, v = (x.view(len(x), rows, -1, x.shape[-1]) for x in states)
            outputs.append(_attended(q, k, v, sight).flatten(1, 2))
        else:  # the kernel finds the shared keys of its heads
            q, k, v = (x.view(len(x), rows, -1, x.shape[-1]).transpose(0, 1) for x in states)
            outputs.append(_attended(q, k, v, sight).transpose(0, 1).flatten(1, 2))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sight: _Sight) -> torch.Tensor:
    """Attend, [N, H, L, D], queries perhaps with more heads; they are those of the last positions.

    Where some positions have no query or see a window alone, a mask is needed: it is made for a block of queries at a
    time, over the keys that these may see, so that it grows with L and not with its square.
    """
    how: dict[str, Any] = {"scale": sight.scaling, "dropout_p": sight.dropout}
    how["enable_gqa"] = query.shape[1] != key.shape[1]
    length, first, window = key.shape[2], key.shape[2] - query.shape[2], sight.window
    if not first and (window is None or window >= length):
        return scaled_dot_product_attention(query, key, value, is_causal=sight.causal, **how)
    outputs = []
    for start in range(first, length, QUERIES):
        end = min(start + QUERIES, length)
        low = 0 if window is None else max(0, start - window + 1)
        seen = torch.ones(end - start, end - low, dtype=torch.bool, device=query.device).tril(start - low)
        if window is not None:
            seen = seen.triu(start - low - window + 1)
        q, k, v = query[:, :, start - first : end - first], key[:, :, low:end], value[:, :, low:end]
        outputs.append(scaled_dot_product_attention(q, k, v, seen, **how))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _by_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: SegmentLayout,
    sight: _Sight,
) -> torch.Tensor:
    """One kernel for all segments, one more for what they begin with; all [H, T, D]."""
    common = 0 if segments.shared is None else segments.shared.common
    lengths = [length for rows, length in segments.runs for _ in range(rows)]
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    how = (sight.scaling, sight.window, sight.causal)
    rest = varlen_attention(q[common:], k, v, [length - common for length in lengths], lengths, *how)
    if not common:
        return rest.transpose(0, 1)
    prefix = varlen_attention(q[:common], k[:common], v[:common], [common], [common], *how)
    return torch.cat([prefix, rest]).transpose(0, 1)


def use_packed_attention(model: Any) -> None:
    """Make a transformers model attend through `packed_attention`; afterwards run it by the functions below only.

    Its output head scores tokens then, where it is asked (`models.output_head`). No mask function is registered under
    the name, and so transformers builds no mask. Undo it by model.set_attn_implementation("sdpa"). An encoder's heads
    stay as they are, and so does its attention where it does not go through transformers' interface:
    `models.masked_heads` masks it.
    """
    from transformers import AttentionInterface

    encoder = type(model).__name__ in HEADS
    if encoder and not model._supports_attention_backend:
        return
    if not encoder:
        use_output_head(model)
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def forward_packed(
    model: Any, micro: MicroBatch, layout: SegmentLayout | None = None, keep_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Return logits_TV of a packed micro-batch; `model` has been through `use_packed_attention`, or wraps one that has.

    `keep_K` (int64 positions) computes logits_KV there only. Pass a `layout` to share it between forwards. Where the
    row is spread over ranks, each gets all logits.
    """
    layout = layout or SegmentLayout.of(micro)
    if keep_K is None:
        keep_K = torch.arange(len(micro.token_ids_T), device=micro.token_ids_T.device)
    if layout.shard is None:
        return _forward(model, micro, layout, keep_K)
    here_K = _here(layout, layout.shard, keep_K)
    logits_KV = _forward(model, micro, layout, keep_K[here_K])
    whole_KV = logits_KV.new_zeros(len(keep_K), logits_KV.shape[1])
    return layout.shard.summed(whole_KV.index_put((here_K.nonzero().squeeze(-1),), logits_KV))


def packed_logprobs(
    model: Any,
    micro: MicroBatch,
    temperature: float = 1.0,
    *,
    entropy: bool = False,
    layout: SegmentLayout | None = None,
) -> PackedLogprobs:
    """Run the model and return log pi(target) at the trained positions.

    The vocabulary projection runs on the trained positions only: prompts cost no logits, and of long rows none exist.
    A micro-batch that trains nothing still runs forward and backward, and gives every parameter that it reaches a zero
    gradient. Where the row is spread over ranks, each gets all logprobs.
    """
    layout = layout or SegmentLayout.of(micro)
    kept_K = micro.mask_T.nonzero().squeeze(-1)
    if layout.shard is not None:
        kept_K = kept_K[_here(layout, layout.shard, kept_K)]
    found = scores_of(_forward(model, micro, layout, kept_K, asked=[Asked(micro.targets_T[kept_K], temperature)]))

    def spread(values_K: torch.Tensor) -> torch.Tensor:
        row_T = torch.zeros(micro.mask_T.shape, dtype=values_K.dtype, device=values_K.device)
        row_T = row_T.index_put((kept_K,), values_K)
        return row_T if layout.shard is None else layout.shard.summed(row_T)

    return PackedLogprobs(spread(found.logprobs_T), spread(found.entropy_T) if entropy else None)


def _here(layout: SegmentLayout, shard: SequenceShard, positions_K: torch.Tensor) -> torch.Tensor:
    """Whether this rank runs on each of these positions of the row, bool [K]."""
    nodes_K = positions_K if layout.shared is None else layout.shared.node_T[positions_K]
    here_K: torch.Tensor = (nodes_K >= shard.tokens.start) & (nodes_K < shard.tokens.stop)
    return here_K


def _forward(model: Any, micro: MicroBatch, layout: SegmentLayout, keep_K: torch.Tensor, **more: Any) -> torch.Tensor:
    """The model's logits (or scores) at positions that this rank runs on."""
    token_ids, position_ids, keep = micro.token_ids_T, micro.position_ids_T, keep_K
    if layout.shared is not None:
        token_ids, position_ids = token_ids[layout.shared.position_U], position_ids[layout.shared.position_U]
        keep = layout.shared.node_T[keep]
    if layout.shard is not None:
        token_ids, position_ids = token_ids[layout.shard.tokens], position_ids[layout.shard.tokens]
        keep = keep - layout.shard.tokens.start
    inputs = {"input_ids": token_ids[None], "position_ids": position_ids[None], "logits_to_keep": keep}
    logits_KV: torch.Tensor = model(**inputs, use_cache=False, segments=layout, **more).logits[0]
    return logits_KV
