"""Mistral: Llama's blocks, a sliding window in all layers of the first version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveInt
from framework.models.families.base import ModelConfig


@dataclass(frozen=True)
class Mistral(ModelConfig):
    """`sliding_window` holds in every layer."""

    sliding_window: PositiveInt | None = None

    model_type: ClassVar[str] = "mistral"

    def hf_keys(self) -> dict[str, Any]:
        """Return what MistralConfig is built from."""
        keys = super().hf_keys()
        del keys["attention_bias"]
        return keys | {"sliding_window": self.sliding_window}
