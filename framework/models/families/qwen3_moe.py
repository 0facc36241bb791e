"""Qwen3-MoE: Qwen3's attention over a softmax router without shared experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import PositiveInt
from framework.errors import UserError
from framework.models.families.base import ModelConfig, RankLayout, check_heads, norm_bytes
from framework.models.families.experts import check_choice


@dataclass(frozen=True)
class Qwen3Moe(ModelConfig):
    """Every layer is sparse, as in the released models."""

    head_dim: PositiveInt | None = 128
    n_routed_experts: PositiveInt = 128  # `num_experts` in config.json
    num_experts_per_tok: PositiveInt = 8
    moe_intermediate_size: PositiveInt = 768
    norm_topk_prob: bool = True

    model_type: ClassVar[str] = "qwen3_moe"

    def check(self) -> None:
        """Raise UserError where sizes contradict each other."""
        check_heads(self)
        check_choice(self, self.n_routed_experts)
        if not self.norm_topk_prob:
            raise UserError("model.norm_topk_prob", False, "must be true: its router's weights sum to one")

    @property
    def num_moe_layers(self) -> int:
        """All of them."""
        return self.num_hidden_layers

    def hf_keys(self) -> dict[str, Any]:
        """Return what Qwen3MoeConfig is built from."""
        return super().hf_keys() | {
            "num_experts": self.n_routed_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "moe_intermediate_size": self.moe_intermediate_size,
            "norm_topk_prob": self.norm_topk_prob,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Raises UserError for dense layers in between, which no released model has."""
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            found = (config.mlp_only_layers, config.decoder_sparse_step)
            raise UserError("base: mlp_only_layers, decoder_sparse_step", found, "must be [] and 1: all layers sparse")
        return {"n_routed_experts": config.num_experts}

    def attention_bytes(self, layout: RankLayout) -> tuple[float, float]:
        """As grouped queries, and the norms of queries and keys."""
        saved, passing = super().attention_bytes(layout)
        heads = self.num_attention_heads + self.key_value_heads
        return saved + norm_bytes(heads * self.head_size, layout), passing
