"""Mixtral: Mistral's attention over a few wide experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveInt
from framework.models.families.base import ModelConfig, check_heads
from framework.models.families.experts import check_choice


@dataclass(frozen=True)
class Mixtral(ModelConfig):
    """Every layer is sparse; an expert is as wide as `intermediate_size`."""

    n_routed_experts: PositiveInt = 8  # `num_local_experts` in config.json
    num_experts_per_tok: PositiveInt = 2
    sliding_window: PositiveInt | None = None

    model_type: ClassVar[str] = "mixtral"

    def check(self) -> None:
        """Raise UserError where sizes contradict each other."""
        check_heads(self)
        check_choice(self, self.n_routed_experts)

    @property
    def moe_intermediate_size(self) -> int:
        """Width of one expert."""
        return self.intermediate_size

    @property
    def num_moe_layers(self) -> int:
        """All of them."""
        return self.num_hidden_layers

    def hf_keys(self) -> dict[str, Any]:
        """Return what MixtralConfig is built from."""
        keys = super().hf_keys()
        del keys["attention_bias"]
        return keys | {
            "num_local_experts": self.n_routed_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "sliding_window": self.sliding_window,
        }

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Names of its own."""
        return {"n_routed_experts": config.num_local_experts}
