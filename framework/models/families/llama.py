"""Llama 1 to 3, DeepSeek-LLM (V1, section 2.2: Llama's architecture with grouped queries) and what copies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.models.families.base import ModelConfig


@dataclass(frozen=True)
class Llama(ModelConfig):
    """Grouped queries, gated feed-forward part; heads may have a size of their own, the output head may be tied."""

    mlp_bias: bool = False
    model_type: ClassVar[str] = "llama"

    def hf_keys(self) -> dict[str, Any]:
        """As every family's, and the bias of the feed-forward part."""
        return super().hf_keys() | {"mlp_bias": self.mlp_bias}
