"""Gemma 3, text alone: windows in five layers of six, norms around each block, a large tied vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveFloat, PositiveInt
from framework.errors import UserError
from framework.models.families.base import ModelConfig, RankLayout, norm_bytes
from framework.models.families.windows import FULL, SLIDING

PERIOD = 6  # the last layer of so many sees everything


@dataclass(frozen=True)
class Gemma3(ModelConfig):
    """`rope_theta` is that of the layers that see everything."""

    head_dim: PositiveInt | None = 256
    rope_theta: PositiveFloat = 1e6
    local_rope_theta: PositiveFloat = 1e4
    tie_word_embeddings: bool = True
    sliding_window: PositiveInt = 512
    layer_types: tuple[str, ...] = ()  # empty: five with a window, one without, and so on
    query_pre_attn_scalar: PositiveInt = 256

    model_type: ClassVar[str] = "gemma3_text"

    @property
    def windows(self) -> tuple[str, ...]:
        """The kind of every layer."""
        default = tuple(FULL if (i + 1) % PERIOD == 0 else SLIDING for i in range(self.num_hidden_layers))
        return self.layer_types or default

    def hf_keys(self) -> dict[str, Any]:
        """Return what Gemma3TextConfig is built from."""
        keys = super().hf_keys()
        if not self.rope_parameters:
            local = {"rope_type": "default", "rope_theta": self.local_rope_theta}
            keys["rope_parameters"] = {FULL: self.rope(), SLIDING: local}
        return keys | {
            "sliding_window": self.sliding_window,
            "layer_types": list(self.windows),
            "query_pre_attn_scalar": self.query_pre_attn_scalar,
        }

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Raises UserError for attention that packed rows do not know."""
        for key in ("attn_logit_softcapping", "use_bidirectional_attention"):
            if getattr(config, key, None):
                raise UserError(
                    f"base: {key}", getattr(config, key), "must be off: attention of that kind is not built"
                )
        rope = config.rope_parameters
        found: dict[str, Any] = {"layer_types": tuple(config.layer_types)}
        plain = {"rope_type", "rope_theta"}
        if all(rope.get(k) and set(rope[k]) <= plain and rope[k]["rope_type"] == "default" for k in (FULL, SLIDING)):
            found |= {"rope_theta": rope[FULL]["rope_theta"], "local_rope_theta": rope[SLIDING]["rope_theta"]}
            found["rope_parameters"] = ""
        else:
            found["rope_parameters"] = json.dumps(dict(rope), sort_keys=True)
        return found

    def layer_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Four norms rather than two, and those of queries and keys."""
        saved, passing = super().layer_bytes(layout, moe)
        heads = (self.num_attention_heads + self.key_value_heads) * self.head_size
        return saved + 2 * norm_bytes(self.hidden_size, layout) + norm_bytes(heads, layout), passing
