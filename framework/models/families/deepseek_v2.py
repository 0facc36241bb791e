"""DeepSeek-V2 and V2-Lite: latent attention, softmax router that is limited to groups (V2 section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from framework.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.experts import check_softmax, softmax_keys
from framework.models.families.latent import check_latent, latent_bytes, latent_cache, latent_keys, latent_width


@dataclass(frozen=True)
class DeepseekV2(ModelConfig):
    """Defaults are V2's."""

    initializer_range: PositiveFloat = 0.006
    q_lora_rank: PositiveInt | None = None  # None: no compression of queries (V2-Lite)
    kv_lora_rank: PositiveInt = 512
    qk_nope_head_dim: PositiveInt = 128
    qk_rope_head_dim: PositiveInt = 64
    v_head_dim: PositiveInt = 128
    n_routed_experts: PositiveInt = 160
    n_shared_experts: PositiveInt = 2
    num_experts_per_tok: PositiveInt = 6
    n_group: PositiveInt = 8
    topk_group: PositiveInt = 3
    moe_intermediate_size: PositiveInt = 1536
    first_k_dense_replace: NonNegativeInt = 1
    routed_scaling_factor: PositiveFloat = 16.0
    norm_topk_prob: bool = False

    model_type: ClassVar[str] = "deepseek_v2"

    def check(self) -> None:
        """Raise UserError where sizes contradict each other."""
        check_latent(self)
        check_softmax(self)

    @property
    def num_moe_layers(self) -> int:
        """Layers behind the dense ones."""
        return self.num_hidden_layers - self.first_k_dense_replace

    def hf_keys(self) -> dict[str, Any]:
        """Return what DeepseekV2Config is built from."""
        return super().hf_keys() | softmax_keys(self) | latent_keys(self)

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Heads are not shared and have no one size."""
        return {"num_key_value_heads": None, "head_dim": None}

    def cache_elements(self, gpus: int) -> float:
        """The latent."""
        return latent_cache(self)

    def attention_width(self) -> int:
        """Keys and values have different widths."""
        return latent_width(self)

    def attention_bytes(self, layout: RankLayout) -> tuple[float, float]:
        """Latent attention's."""
        return latent_bytes(self, layout)
