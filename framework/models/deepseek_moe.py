"""DeepSeekMoE-16B ("deepseek"), which transformers has no class for: Llama's attention over DeepSeek-V2's MoE block.

Plain multi-head attention with rotary halves, first layers dense, then fine-grained experts beside shared ones and a
softmax router without groups, bias or normalisation (DeepSeekMoE sections 3 and 5.1.2). Parameters have the names of
the published checkpoint, which vLLM's DeepseekForCausalLM reads. Importing this module registers the classes with
transformers' Auto classes.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2ForCausalLM,
    DeepseekV2Model,
    DeepseekV2Moe,
    DeepseekV2PreTrainedModel,
    DeepseekV2TopkRouter,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.output_capturing import OutputRecorder

MODEL_TYPE = "deepseek"


class DeepseekConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes; names and defaults are those of DeepSeekMoE-16B's published config.json."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_experts": "n_routed_experts"}

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    n_shared_experts: int = 2
    n_routed_experts: int = 64
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    topk_method: str = "greedy"
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    output_router_logits: bool = False


class DeepseekDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """One layer; the first `first_k_dense_replace` stay dense."""

    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if layer_idx >= config.first_k_dense_replace:
            self.mlp = DeepseekV2Moe(config)


class DeepseekModel(DeepseekV2Model):  # type: ignore[misc]
    """The decoder; its forward is DeepSeek-V2's, which leaves positions and attention to the layers."""

    config_class = DeepseekConfig
    _no_split_modules = ["DeepseekDecoderLayer"]
    _can_record_outputs = {
        "hidden_states": DeepseekDecoderLayer,
        "attentions": LlamaAttention,
        "router_logits": OutputRecorder(DeepseekV2TopkRouter, index=0),
    }

    def __init__(self, config: DeepseekConfig) -> None:
        DeepseekV2PreTrainedModel.__init__(self, config)  # not V2's own, which would build its latent attention
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekForCausalLM(DeepseekV2ForCausalLM):  # type: ignore[misc]
    """The decoder with its output head."""

    config_class = DeepseekConfig
    _no_split_modules = ["DeepseekDecoderLayer"]
    _can_record_outputs = DeepseekModel._can_record_outputs

    def __init__(self, config: DeepseekConfig) -> None:
        DeepseekV2PreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(MODEL_TYPE, DeepseekConfig, exist_ok=True)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
# On disk each expert has tensors of its own, in memory they are fused.
register_checkpoint_conversion_mapping(MODEL_TYPE, get_checkpoint_conversion_mapping("deepseek_v2"), overwrite=True)
