"""GPT-2: learned positions, layer norms, a plain feed-forward part; its output head is tied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from framework.bounds import Bound, PositiveFloat
from framework.errors import UserError
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.plain import check_plain_heads, plain_feed_forward_bytes


@dataclass(frozen=True)
class Gpt2(ModelConfig):
    """`rms_norm_eps` is its layer norms' epsilon; it has no rotary embedding."""

    rms_norm_eps: PositiveFloat = 1e-5
    tie_word_embeddings: bool = True
    dropout: Annotated[float, Bound(least=0, below=1)] = 0.0  # the released models' 0.1 is for pretraining

    model_type: ClassVar[str] = "gpt2"

    def check(self) -> None:
        """Raise UserError unless heads divide the width."""
        check_plain_heads(self)

    def hf_keys(self) -> dict[str, Any]:
        """Return what GPT2Config is built from."""
        return {
            "vocab_size": self.vocab_size,
            "n_embd": self.hidden_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_inner": None if self.intermediate_size == 4 * self.hidden_size else self.intermediate_size,
            "n_positions": self.max_position_embeddings,
            "layer_norm_epsilon": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": self.dtype,
        }

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Raises UserError for attention that is scaled layer by layer, which packed rows do not know."""
        for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
            if getattr(config, key):
                raise UserError(f"base: {key}", True, "must be false: attention of another kind is not built")
        return {
            "intermediate_size": config.n_inner or 4 * config.n_embd,
            "rms_norm_eps": config.layer_norm_epsilon,
            "dropout": config.resid_pdrop,
        }

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Without a gate: the widened state, its activation (of which GPT-2's keeps three tensors)."""
        return plain_feed_forward_bytes(self, layout, kept=5.0)
