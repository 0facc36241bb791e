"""Sizes of attention heads that vLLM 0.32's CPU kernels are built for: any other fails at the first token."""

from __future__ import annotations

from typing import Any

from framework.errors import UserError

SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_cpu_heads(model: Any, where: str = "model.head_dim") -> None:
    """Raise UserError if a model (its sizes, or its Hugging Face config) has heads of another size."""
    found = getattr(model, "qk_nope_head_dim", None)
    if found is not None:  # latent attention
        found += model.qk_rope_head_dim
    else:
        heads = getattr(model, "num_attention_heads", None)
        found = getattr(model, "head_dim", None) or (model.hidden_size // heads if heads else None)
    if found is not None and found not in SIZES:
        allowed = f"must be one of {', '.join(map(str, SIZES))}: those vLLM samples with on a CPU"
        raise UserError(where, found, allowed)
