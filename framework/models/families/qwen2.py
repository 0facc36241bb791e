"""Qwen2 and Qwen2.5: Llama's blocks with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveInt
from framework.models.families.base import ModelConfig
from framework.models.families.windows import window_keys, windowed_layers


@dataclass(frozen=True)
class Qwen2(ModelConfig):
    """The biases are always there: `attention_bias` says nothing."""

    sliding_window: PositiveInt | None = None
    layer_types: tuple[str, ...] = ()  # full_attention or sliding_attention a layer; empty: full

    model_type: ClassVar[str] = "qwen2"

    def hf_keys(self) -> dict[str, Any]:
        """Return what Qwen2Config is built from."""
        keys = super().hf_keys()
        del keys["attention_bias"]
        return keys | window_keys(self.sliding_window, self.layer_types)

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Lists cannot be hashed."""
        return {"layer_types": windowed_layers(config)}
