"""Multi-head latent attention (V2 section 2.1), which V2 and V3 share: keys of a config, bytes, FLOPs."""

from __future__ import annotations

from typing import Any

from framework.errors import UserError
from framework.models.families.base import RankLayout, exchange_bytes, norm_bytes, size_of

Family = Any  # a ModelConfig with the fields of latent attention
KEYS = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def latent_keys(spec: Family) -> dict[str, Any]:
    """What the configs are told; no heads are shared, and other values would make transformers repeat them."""
    return {key: getattr(spec, key) for key in KEYS} | {"num_key_value_heads": spec.num_attention_heads}


def check_latent(spec: Family) -> None:
    """Raise UserError for a rotary part that has no pairs."""
    if spec.qk_rope_head_dim % 2:
        raise UserError("model.qk_rope_head_dim", spec.qk_rope_head_dim, "must be even: it rotates pairs")


def latent_cache(spec: Family) -> float:
    """The latent and the rotary key, the same for all heads: whole on every GPU."""
    return float(spec.kv_lora_rank + spec.qk_rope_head_dim)


def latent_width(spec: Family) -> int:
    """Multiply-adds per head and pair of a query and a key."""
    return int(spec.qk_nope_head_dim + spec.qk_rope_head_dim + spec.v_head_dim)


def latent_bytes(spec: Family, layout: RankLayout) -> tuple[float, float]:
    """(kept for the backward pass, short-lived in it), per token of one layer."""
    size, heads = size_of(layout.dtype), spec.num_attention_heads
    key, value = spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim
    saved = norm_bytes(spec.q_lora_rank or 0, layout) + norm_bytes(spec.kv_lora_rank, layout)
    # Values are a view of what kv_b_proj gives, which so stays whole: where they are moved, they alone stay.
    values, outputs = spec.qk_nope_head_dim + value, 2 * value  # outputs twice, as o_proj wants another layout
    if layout.sp_size > 1:
        values = value
    if key != value and layout.on_gpu:  # models.varlen_attention: values as wide as keys, and what comes of them
        values, outputs = key, key + value
    saved += heads * (2 * key + values + outputs) * size
    passing = exchange_bytes(heads, key, layout)
    if key != value and not layout.on_gpu:  # no fused kernel on CPU: every head's L x L matrix
        saved += heads * (layout.segment - spec.qk_nope_head_dim) * size
        passing = max(passing, 2 * heads * layout.segment * size)
    return float(saved), float(passing)
