"""CTRL (1909.05858): a causal transformer with sinusoidal positions, conditioned on a control code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveFloat
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.plain import check_plain_heads, plain_feed_forward_bytes


@dataclass(frozen=True)
class Ctrl(ModelConfig):
    """vLLM has no such model: transformers' own `generate` samples it."""

    rms_norm_eps: PositiveFloat = 1e-6
    tie_word_embeddings: bool = True

    model_type: ClassVar[str] = "ctrl"
    architecture: ClassVar[str] = "CTRLLMHeadModel"
    policy: ClassVar[bool] = False

    def check(self) -> None:
        """Raise UserError unless heads divide the width."""
        check_plain_heads(self)

    def hf_keys(self) -> dict[str, Any]:
        """Return what CTRLConfig is built from."""
        return {
            "vocab_size": self.vocab_size,
            "n_embd": self.hidden_size,
            "dff": self.intermediate_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "n_positions": self.max_position_embeddings,
            "layer_norm_epsilon": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": self.dtype,
        }

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Without a gate."""
        return plain_feed_forward_bytes(self, layout)
