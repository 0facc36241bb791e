"""Sliding windows of attention: which layers have one, and how a config says so."""

from __future__ import annotations

from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"


def windowed_layers(config: Any) -> tuple[str, ...]:
    """Return a Hugging Face config's layer types if one of them has a window, else nothing."""
    types = tuple(getattr(config, "layer_types", None) or ())
    return types if SLIDING in types else ()


def window_keys(window: int | None, layer_types: tuple[str, ...]) -> dict[str, Any]:
    """Return what Qwen's configs are told of windows."""
    if SLIDING not in layer_types:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": list(layer_types)}
