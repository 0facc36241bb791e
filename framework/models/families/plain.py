"""What transformers of before the gate share: heads of their own, and a feed-forward part of two matrices."""

from __future__ import annotations

from framework.errors import UserError
from framework.models.families.base import ModelConfig, RankLayout, size_of


def check_plain_heads(spec: ModelConfig) -> None:
    """Raise UserError unless heads divide the width and none are shared."""
    if spec.hidden_size % spec.num_attention_heads or spec.num_key_value_heads not in (None, spec.num_attention_heads):
        allowed = f"must be a multiple of num_attention_heads={spec.num_attention_heads}; no heads are shared"
        raise UserError("model.hidden_size", spec.hidden_size, allowed)


def plain_feed_forward_bytes(spec: ModelConfig, layout: RankLayout, kept: float = 3.0) -> tuple[float, float]:
    """(kept, short-lived) per token of a feed-forward part without a gate; `kept` tensors of its width stay."""
    size, width = size_of(layout.dtype), spec.intermediate_size
    return kept * width * size, (2 * spec.hidden_size + 1.5 * width) * size
