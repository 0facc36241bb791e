"""Phi-3: Llama's blocks with fused projections, and a rotary embedding that may turn part of a head only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveInt
from framework.models.families.base import ModelConfig


@dataclass(frozen=True)
class Phi3(ModelConfig):
    """`sliding_window` holds in every layer."""

    sliding_window: PositiveInt | None = None

    model_type: ClassVar[str] = "phi3"

    def hf_keys(self) -> dict[str, Any]:
        """Return what Phi3Config is built from."""
        keys = super().hf_keys()
        del keys["attention_bias"]
        before = {"original_max_position_embeddings": self.original_max_position_embeddings}
        return keys | before | {"sliding_window": self.sliding_window}

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """The context before it was extended stands beside the rotary embedding's own keys."""
        return {"original_max_position_embeddings": config.original_max_position_embeddings}
