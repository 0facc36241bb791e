"""GPT-NeoX and Pythia: attention and feed-forward part side by side, rotary embedding on part of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveFloat
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.plain import plain_feed_forward_bytes


@dataclass(frozen=True)
class GptNeox(ModelConfig):
    """`rms_norm_eps` is its layer norms' epsilon."""

    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = True
    use_parallel_residual: bool = True
    partial_rotary_factor: PositiveFloat = 0.25

    model_type: ClassVar[str] = "gpt_neox"

    def hf_keys(self) -> dict[str, Any]:
        """Return what GPTNeoXConfig is built from."""
        keys = super().hf_keys()
        for key in ("num_key_value_heads", "rms_norm_eps"):
            del keys[key]
        keys["rope_parameters"] |= {"partial_rotary_factor": self.partial_rotary_factor}
        return keys | {"layer_norm_eps": self.rms_norm_eps, "use_parallel_residual": self.use_parallel_residual}

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Names of its own."""
        rope = dict(config.rope_parameters)
        found = {"rms_norm_eps": config.layer_norm_eps, "partial_rotary_factor": rope.pop("partial_rotary_factor", 1.0)}
        if rope.get("rope_type", "default") == "default":
            found |= {"rope_theta": float(rope["rope_theta"]), "rope_parameters": ""}
        return found

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Without a gate: the widened state and its activation."""
        return plain_feed_forward_bytes(self, layout)
