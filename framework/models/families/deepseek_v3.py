"""DeepSeek-V3: latent attention, sigmoid router with a correction bias, multi-token prediction (V3 section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from framework.bounds import Bound, NonNegativeInt, PositiveFloat, PositiveInt
from framework.models.families.base import ModelConfig, RankLayout
from framework.models.families.experts import check_groups, group_keys
from framework.models.families.latent import check_latent, latent_bytes, latent_cache, latent_keys, latent_width


@dataclass(frozen=True)
class DeepseekV3(ModelConfig):
    """Defaults are the released model's where it has any."""

    initializer_range: PositiveFloat = 0.006  # as trained (V3 section 4.2); the published config.json says 0.02
    q_lora_rank: PositiveInt | None = None  # None: no compression of queries
    kv_lora_rank: PositiveInt = 512
    qk_nope_head_dim: PositiveInt = 128
    qk_rope_head_dim: PositiveInt = 64
    v_head_dim: PositiveInt = 128
    n_routed_experts: PositiveInt = 256
    n_shared_experts: PositiveInt = 1
    num_experts_per_tok: PositiveInt = 8
    n_group: PositiveInt = 8
    topk_group: PositiveInt = 4
    moe_intermediate_size: PositiveInt = 2048
    first_k_dense_replace: NonNegativeInt = 3
    routed_scaling_factor: PositiveFloat = 2.5
    norm_topk_prob: bool = True
    num_nextn_predict_layers: Annotated[int, Bound(least=0, most=100)] = 0  # MTP modules (section 2.2)

    model_type: ClassVar[str] = "deepseek_v3"

    def check(self) -> None:
        """Raise UserError where sizes contradict each other."""
        check_latent(self)
        check_groups(self, least=2)  # a group's score is the sum of its two best experts

    @property
    def num_moe_layers(self) -> int:
        """Layers behind the dense ones."""
        return self.num_hidden_layers - self.first_k_dense_replace

    def hf_keys(self) -> dict[str, Any]:
        """Return what DeepseekV3Config is built from, and the keys without which vLLM builds no correction bias."""
        router = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_mtp_layers": self.num_nextn_predict_layers}
        return super().hf_keys() | group_keys(self) | latent_keys(self) | router

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Heads are not shared and have no one size."""
        modules = getattr(config, "num_nextn_predict_layers", None) or 0
        return {"num_key_value_heads": None, "head_dim": None, "num_nextn_predict_layers": modules}

    def cache_elements(self, gpus: int) -> float:
        """The latent."""
        return latent_cache(self)

    def attention_width(self) -> int:
        """Keys and values have different widths."""
        return latent_width(self)

    def attention_bytes(self, layout: RankLayout) -> tuple[float, float]:
        """Latent attention's."""
        return latent_bytes(self, layout)
