"""Qwen3: Llama's blocks with a norm on each head's queries and keys, and heads of a size of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveInt
from framework.models.families.base import ModelConfig, RankLayout, norm_bytes
from framework.models.families.windows import window_keys, windowed_layers


@dataclass(frozen=True)
class Qwen3(ModelConfig):
    """The dense models; small ones tie their output head."""

    head_dim: PositiveInt | None = 128
    sliding_window: PositiveInt | None = None
    layer_types: tuple[str, ...] = ()  # full_attention or sliding_attention a layer; empty: full

    model_type: ClassVar[str] = "qwen3"

    def hf_keys(self) -> dict[str, Any]:
        """Return what Qwen3Config is built from."""
        return super().hf_keys() | window_keys(self.sliding_window, self.layer_types)

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Lists cannot be hashed."""
        return {"layer_types": windowed_layers(config)}

    def attention_bytes(self, layout: RankLayout) -> tuple[float, float]:
        """As grouped queries, and the norms of queries and keys."""
        saved, passing = super().attention_bytes(layout)
        heads = self.num_attention_heads + self.key_value_heads
        return saved + norm_bytes(heads * self.head_size, layout), passing
