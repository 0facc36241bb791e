"""BERT (1810.04805) and its kind: RoBERTa (1907.11692), ALBERT (1909.11942), Megatron-LM's BERT (1909.08053)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveFloat, PositiveInt
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.plain import check_plain_heads, plain_feed_forward_bytes


@dataclass(frozen=True)
class Bert(ModelConfig):
    """An encoder with learned positions, layer norms behind each block, and the heads of its pretraining.

    `rms_norm_eps` is its layer norms' epsilon; it has no rotary embedding.
    """

    rms_norm_eps: PositiveFloat = 1e-12
    tie_word_embeddings: bool = True
    type_vocab_size: PositiveInt = 2  # first and second part of a pair

    model_type: ClassVar[str] = "bert"
    architecture: ClassVar[str] = "BertForPreTraining"
    policy: ClassVar[bool] = False

    def check(self) -> None:
        """Raise UserError unless heads divide the width."""
        check_plain_heads(self)

    def hf_keys(self) -> dict[str, Any]:
        """Return what BertConfig is built from."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.rms_norm_eps,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": self.dtype,
        }

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Without a gate: the widened state and its activation."""
        return plain_feed_forward_bytes(self, layout)


@dataclass(frozen=True)
class Roberta(Bert):
    """Its positions count from behind the padding token's: two more than a row has tokens."""

    rms_norm_eps: PositiveFloat = 1e-5
    type_vocab_size: PositiveInt = 1

    model_type: ClassVar[str] = "roberta"
    architecture: ClassVar[str] = "RobertaForMaskedLM"

    @property
    def longest_row(self) -> int:
        """Two less than it has positions."""
        return self.max_position_embeddings - 2


@dataclass(frozen=True)
class Albert(Bert):
    """One layer, applied `num_hidden_layers` times; embeddings narrower than the hidden state (section 3.1)."""

    embedding_size: PositiveInt = 128

    model_type: ClassVar[str] = "albert"
    architecture: ClassVar[str] = "AlbertForPreTraining"

    def hf_keys(self) -> dict[str, Any]:
        """Return what AlbertConfig is built from."""
        return super().hf_keys() | {"embedding_size": self.embedding_size, "inner_group_num": 1}


@dataclass(frozen=True)
class MegatronBert(Bert):
    """Layer norms before each block: what let BERT grow (1909.08053, section 5.3)."""

    model_type: ClassVar[str] = "megatron-bert"
    architecture: ClassVar[str] = "MegatronBertForPreTraining"
