"""DistilBERT (1910.01108): BERT with half its layers, no token types and no pooler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveFloat
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.plain import check_plain_heads, plain_feed_forward_bytes


@dataclass(frozen=True)
class DistilBert(ModelConfig):
    """The student; its layer norms' epsilon is 1e-12 in transformers, whatever is configured."""

    rms_norm_eps: PositiveFloat = 1e-12
    tie_word_embeddings: bool = True

    model_type: ClassVar[str] = "distilbert"
    architecture: ClassVar[str] = "DistilBertForMaskedLM"
    policy: ClassVar[bool] = False

    def check(self) -> None:
        """Raise UserError unless heads divide the width."""
        check_plain_heads(self)

    def hf_keys(self) -> dict[str, Any]:
        """Return what DistilBertConfig is built from."""
        return {
            "vocab_size": self.vocab_size,
            "dim": self.hidden_size,
            "hidden_dim": self.intermediate_size,
            "n_layers": self.num_hidden_layers,
            "n_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": self.dtype,
        }

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Without a gate."""
        return plain_feed_forward_bytes(self, layout)
