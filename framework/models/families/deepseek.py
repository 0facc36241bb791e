"""DeepSeekMoE-16B: Llama's attention over fine-grained and shared experts (DeepSeekMoE section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from framework.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from framework.models.families.base import ModelConfig, check_heads
from framework.models.families.experts import check_softmax, softmax_keys

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class DeepseekMoe(ModelConfig):
    """Defaults are the released model's."""

    initializer_range: PositiveFloat = 0.006
    n_routed_experts: PositiveInt = 64
    n_shared_experts: PositiveInt = 2
    num_experts_per_tok: PositiveInt = 6
    n_group: PositiveInt = 1
    topk_group: PositiveInt = 1
    moe_intermediate_size: PositiveInt = 1408
    first_k_dense_replace: NonNegativeInt = 1
    routed_scaling_factor: PositiveFloat = 1.0
    norm_topk_prob: bool = False

    model_type: ClassVar[str] = "deepseek"

    def check(self) -> None:
        """Raise UserError where sizes contradict each other."""
        check_heads(self)
        check_softmax(self)

    @property
    def num_moe_layers(self) -> int:
        """Layers behind the dense ones."""
        return self.num_hidden_layers - self.first_k_dense_replace

    def hf_keys(self) -> dict[str, Any]:
        """Return what our DeepseekConfig is built from."""
        return super().hf_keys() | softmax_keys(self)

    def hf_config(self) -> PretrainedConfig:
        """Return the config; importing its module tells transformers of the family."""
        import framework.models.deepseek_moe  # noqa: F401

        return super().hf_config()
