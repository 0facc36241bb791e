"""XLNet (1906.08237): a Transformer-XL encoder with relative positions and two streams of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveFloat
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.plain import check_plain_heads, plain_feed_forward_bytes


@dataclass(frozen=True)
class XLNet(ModelConfig):
    """`max_position_embeddings` only bounds rows: relative positions have no table."""

    rms_norm_eps: PositiveFloat = 1e-12
    tie_word_embeddings: bool = True

    model_type: ClassVar[str] = "xlnet"
    architecture: ClassVar[str] = "XLNetLMHeadModel"
    policy: ClassVar[bool] = False

    def check(self) -> None:
        """Raise UserError unless heads divide the width."""
        check_plain_heads(self)

    def hf_keys(self) -> dict[str, Any]:
        """Return what XLNetConfig is built from."""
        return {
            "vocab_size": self.vocab_size,
            "d_model": self.hidden_size,
            "d_inner": self.intermediate_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "layer_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": self.dtype,
        }

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Without a gate."""
        return plain_feed_forward_bytes(self, layout)
