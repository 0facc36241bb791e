"""Model sizes as a frozen dataclass that becomes a Hugging Face config, a fresh model, or its parameter counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from framework.bounds import Bound, FilledStr, NonNegativeInt, PositiveFloat, PositiveInt, bounded, divisors
from framework.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

Architecture = Literal["deepseek_v3", "deepseek_v2", "deepseek", "qwen2", "llama"]
MLA: tuple[Architecture, ...] = ("deepseek_v3", "deepseek_v2")
MOE: tuple[Architecture, ...] = (*MLA, "deepseek")  # "deepseek" is DeepSeekMoE-16B
EXPERTS = ".mlp.experts."  # in the name of every routed expert's parameter


@dataclass(frozen=True)
@bounded
class ModelConfig:
    """Sizes of a causal language model; field names are Hugging Face's. Defaults are DeepSeek-V3's where it has any.

    The fields of MLA count for `deepseek_v3` and `deepseek_v2` only, those of MoE for these and `deepseek`, and
    `num_key_value_heads` where there is no MLA. Experts are scored by sigmoid in `deepseek_v3`, else by softmax.
    Raises UserError where sizes contradict each other.
    """

    name: FilledStr
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: Annotated[int, Bound(least=1, most=10_000)]
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt  # of a dense layer
    max_position_embeddings: PositiveInt
    architecture: Architecture = "deepseek_v3"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    num_key_value_heads: PositiveInt | None = None  # None: as many as attention heads
    # Multi-head latent attention (V2 section 2.1)
    q_lora_rank: PositiveInt | None = None  # None: no compression of queries (V2-Lite)
    kv_lora_rank: PositiveInt = 512
    qk_nope_head_dim: PositiveInt = 128
    qk_rope_head_dim: PositiveInt = 64
    v_head_dim: PositiveInt = 128
    # Mixture of experts (V3 section 2.1.2; V2 section 2.2; DeepSeekMoE section 3)
    n_routed_experts: PositiveInt = 256
    n_shared_experts: PositiveInt = 1
    num_experts_per_tok: PositiveInt = 8
    n_group: PositiveInt = 8
    topk_group: PositiveInt = 4
    moe_intermediate_size: PositiveInt = 2048
    first_k_dense_replace: NonNegativeInt = 3
    routed_scaling_factor: PositiveFloat = 2.5
    norm_topk_prob: bool = True
    num_nextn_predict_layers: Annotated[int, Bound(least=0, most=100)] = 0  # MTP modules (V3 section 2.2)
    # Rotary embedding, stretched once rope_factor > 1: YaRN (V3 section 4.3) or Llama 3's rule
    rope_theta: PositiveFloat = 1e4
    rope_factor: Annotated[float, Bound(least=1)] = 1.0
    rope_type: Literal["yarn", "llama3"] = "yarn"
    original_max_position_embeddings: PositiveInt = 4096
    rope_mscale: PositiveFloat = 1.0
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.006  # as trained (V3 section 4.2); the published config.json says 0.02
    bos_token_id: NonNegativeInt = 0
    eos_token_id: NonNegativeInt = 1
    pad_token_id: NonNegativeInt | None = 2  # its embedding gets no gradient

    def __post_init__(self) -> None:
        if self.architecture in MLA:
            if self.qk_rope_head_dim % 2:
                raise UserError("model.qk_rope_head_dim", self.qk_rope_head_dim, "must be even: it rotates pairs")
        else:
            self._check_heads()
        if self.architecture in MOE:
            self._check_experts()
        depths, has_modules = self.num_nextn_predict_layers, self.architecture == "deepseek_v3"
        if depths and not has_modules:
            raise UserError("model.num_nextn_predict_layers", depths, "must be 0: only deepseek_v3 has any")

    def _check_heads(self) -> None:
        heads = self.num_attention_heads
        if self.hidden_size % (2 * heads):
            allowed = f"must be an even multiple of num_attention_heads={heads}"
            raise UserError("model.hidden_size", self.hidden_size, allowed)
        if self.num_key_value_heads is not None and heads % self.num_key_value_heads:
            allowed = f"must divide num_attention_heads={heads}: {_divisors(heads)}"
            raise UserError("model.num_key_value_heads", self.num_key_value_heads, allowed)

    def _check_experts(self) -> None:
        if self.n_routed_experts % self.n_group:
            allowed = f"must divide n_routed_experts={self.n_routed_experts}: {_divisors(self.n_routed_experts)}"
            raise UserError("model.n_group", self.n_group, allowed)
        if self.topk_group > self.n_group:
            raise UserError("model.topk_group", self.topk_group, f"must be 1 to n_group={self.n_group}")
        per_group = self.n_routed_experts // self.n_group
        if per_group < 2 and self.architecture == "deepseek_v3":  # a group's score is the sum of its two best experts
            raise UserError("model.n_group", self.n_group, "must leave at least 2 routed experts in each group")
        reachable = self.topk_group * per_group
        if self.num_experts_per_tok > reachable:
            allowed = f"must be 1 to {reachable}, the experts of topk_group={self.topk_group} groups"
            raise UserError("model.num_experts_per_tok", self.num_experts_per_tok, allowed)
        if self.norm_topk_prob and self.architecture != "deepseek_v3":
            raise UserError("model.norm_topk_prob", True, f"must be false: {self.architecture} scores by softmax alone")
        if self.first_k_dense_replace > self.num_hidden_layers:
            allowed = f"must be 0 to num_hidden_layers={self.num_hidden_layers}"
            raise UserError("model.first_k_dense_replace", self.first_k_dense_replace, allowed)

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return self.num_hidden_layers - self.first_k_dense_replace if self.architecture in MOE else 0


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the model; `total` and `active` leave out its MTP modules, which transformers does not build."""

    total: int
    active: int  # that one token passes through: everything, both embeddings too, but experts it is not routed to
    routed_experts: int
    embedding: int  # the input table, of which a token reads one row
    mtp: int  # of all MTP modules, without the embedding and output head that they share with the model
    mtp_experts: int  # of these, routed experts


def hf_config(spec: ModelConfig) -> PretrainedConfig:
    """Return the Hugging Face config; for DeepSeek with the keys that vLLM needs to build the correction bias."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        # Under MLA no heads are shared; other values would make transformers repeat them.
        "num_key_value_heads": (spec.architecture not in MLA and spec.num_key_value_heads) or spec.num_attention_heads,
        "max_position_embeddings": spec.max_position_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "initializer_range": spec.initializer_range,
        "rope_parameters": _rope_parameters(spec),
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": spec.eos_token_id,
        "pad_token_id": spec.pad_token_id,
        "dtype": spec.dtype,
    }
    if spec.architecture == "qwen2":
        return transformers.Qwen2Config(**common, architectures=["Qwen2ForCausalLM"])
    common["attention_bias"] = spec.attention_bias
    if spec.architecture == "llama":
        return transformers.LlamaConfig(**common, architectures=["LlamaForCausalLM"])
    if spec.architecture == "deepseek":
        from framework.models.deepseek_moe import DeepseekConfig

        return DeepseekConfig(**common, **_moe_keys(spec), architectures=["DeepseekForCausalLM"])
    keys = common | _moe_keys(spec) | _mla_keys(spec)
    if spec.architecture == "deepseek_v2":
        return transformers.DeepseekV2Config(**keys, architectures=["DeepseekV2ForCausalLM"])
    mtp = {"num_mtp_layers": spec.num_nextn_predict_layers}
    return transformers.DeepseekV3Config(**keys, **mtp, architectures=["DeepseekV3ForCausalLM"])


def _mla_keys(spec: ModelConfig) -> dict[str, Any]:
    return {
        "q_lora_rank": spec.q_lora_rank,
        "kv_lora_rank": spec.kv_lora_rank,
        "qk_nope_head_dim": spec.qk_nope_head_dim,
        "qk_rope_head_dim": spec.qk_rope_head_dim,
        "v_head_dim": spec.v_head_dim,
    }


def _moe_keys(spec: ModelConfig) -> dict[str, Any]:
    if spec.architecture == "deepseek_v3":
        topk_method, scoring_func = "noaux_tc", "sigmoid"
    else:
        topk_method, scoring_func = ("group_limited_greedy" if spec.n_group > 1 else "greedy"), "softmax"
    return {
        "n_routed_experts": spec.n_routed_experts,
        "n_shared_experts": spec.n_shared_experts,
        "num_experts_per_tok": spec.num_experts_per_tok,
        "n_group": spec.n_group,
        "topk_group": spec.topk_group,
        "moe_intermediate_size": spec.moe_intermediate_size,
        "first_k_dense_replace": spec.first_k_dense_replace,
        "routed_scaling_factor": spec.routed_scaling_factor,
        "norm_topk_prob": spec.norm_topk_prob,
        "topk_method": topk_method,
        "scoring_func": scoring_func,
        "moe_layer_freq": 1,
    }


def build_model(spec: ModelConfig, seed: int) -> PreTrainedModel:
    """Return a fresh model in spec.dtype on the current default device, weights N(0, initializer_range) from `seed`.

    For models that a single process can hold; `engines.sharded_load.build_sharded` makes the same weights in parts.
    """
    import torch

    from framework.models.initial import draw_weights

    model = empty_model(hf_config(spec), getattr(torch, spec.dtype))
    for name, parameter in model.named_parameters():
        draw_weights(parameter.data.view(-1), 0, name, parameter.shape, model, seed)
    return model


def empty_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a config; the memory of its weights is not touched, so the machine need not provide it."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model: PreTrainedModel = model_class(config)._from_config(config, dtype=dtype)
    model.tie_weights()  # which comes with the initialisation otherwise
    for module in model.modules():
        bias = getattr(module, "e_score_correction_bias", None)
        if bias is not None:  # from_config casts it with the rest, but bias steps of 0.001 vanish in bf16
            module.e_score_correction_bias = bias.float()
    return model


def model_class(config: PretrainedConfig) -> Any:
    """Return the class of a config's causal language model: transformers', or ours where it has MTP modules."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if config.model_type == "deepseek_v3" and config.num_mtp_layers:
        from framework.models.mtp import DeepseekV3ForCausalLM

        return DeepseekV3ForCausalLM
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@lru_cache(maxsize=8)
def parameter_counts(spec: ModelConfig) -> ParameterCounts:
    """Count parameters on the meta device: no memory is used, whatever the size."""
    import torch

    with torch.device("meta"):
        model: Any = empty_model(hf_config(replace(spec, num_nextn_predict_layers=0)), torch.bfloat16)
    total = _size(model)
    routed = _size(model, EXPERTS)
    idle = routed * (spec.n_routed_experts - spec.num_experts_per_tok) // spec.n_routed_experts
    # V3 section 2.2: one more block behind a projection of two normalised states; a norm before the shared head.
    block, depths = model.model.layers[-1], spec.num_nextn_predict_layers
    module = _size(block) + 2 * spec.hidden_size**2 + 3 * spec.hidden_size
    return ParameterCounts(
        total=total,
        active=total - idle,
        routed_experts=routed,
        embedding=model.model.embed_tokens.weight.numel(),
        mtp=depths * module,
        mtp_experts=depths * _size(block, EXPERTS[1:]),
    )


def _size(module: Any, part: str = "") -> int:
    """Elements of the parameters whose name holds `part`."""
    return sum(parameter.numel() for name, parameter in module.named_parameters() if part in name)


def _rope_parameters(spec: ModelConfig) -> dict[str, Any]:
    if spec.rope_factor <= 1:
        return {"rope_type": "default", "rope_theta": spec.rope_theta}
    if spec.rope_type == "llama3":
        return {
            "rope_type": "llama3",
            "rope_theta": spec.rope_theta,
            "factor": spec.rope_factor,
            "original_max_position_embeddings": spec.original_max_position_embeddings,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    return {
        "rope_type": "yarn",
        "rope_theta": spec.rope_theta,
        "factor": spec.rope_factor,
        "original_max_position_embeddings": spec.original_max_position_embeddings,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": spec.rope_mscale,
        "mscale_all_dim": spec.rope_mscale,
    }


def _divisors(number: int) -> str:
    return ", ".join(map(str, divisors(number)))
