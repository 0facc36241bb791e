"""From the sizes of a family to a model: fresh weights, an empty one, the class it is of, its parameter counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from framework.models.families.base import ModelConfig

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

EXPERTS = ".mlp.experts."  # in the name of every routed expert's parameter


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the model; `total` and `active` leave out its MTP modules, which transformers does not build."""

    total: int
    active: int  # that one token passes through: everything, both embeddings too, but experts it is not routed to
    routed_experts: int
    embedding: int  # the input table, of which a token reads one row
    mtp: int  # of all MTP modules, without the embedding and output head that they share with the model
    mtp_experts: int  # of these, routed experts


def build_model(spec: ModelConfig, seed: int) -> PreTrainedModel:
    """Return a fresh model in spec.dtype on the current default device, weights N(0, initializer_range) from `seed`.

    For models that a single process can hold; `engines.sharded_load.build_sharded` makes the same weights in parts.
    """
    import torch

    from framework.models.initial import draw_weights

    model = empty_model(spec.hf_config(), getattr(torch, spec.dtype))
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
    """Return the class of a config's model: transformers', ours where it has MTP modules, or one with another head."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from framework.models.masked_heads import HEADS, masked_head_class
    from framework.models.scalar_head import has_scalar_head, scalar_head_class

    if (named := (config.architectures or [""])[0]) in HEADS:
        return masked_head_class(named)
    if has_scalar_head(config):
        return scalar_head_class(config)
    if config.model_type == "deepseek_v3" and config.num_mtp_layers:
        from framework.models.mtp import DeepseekV3ForCausalLM

        return DeepseekV3ForCausalLM
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@lru_cache(maxsize=8)
def parameter_counts(spec: ModelConfig) -> ParameterCounts:
    """Count parameters on the meta device: no memory is used, whatever the size."""
    import torch

    with torch.device("meta"):
        model: Any = empty_model(_without_modules(spec).hf_config(), torch.bfloat16)
    total = _size(model)
    routed = _size(model, EXPERTS)
    idle = routed * (spec.n_routed_experts - spec.num_experts_per_tok) // max(spec.n_routed_experts, 1)
    # V3 section 2.2: one more block behind a projection of two normalised states; a norm before the shared head.
    block, depths = decoder_layers(model)[1][-1], spec.num_nextn_predict_layers
    module = _size(block) + 2 * spec.hidden_size**2 + 3 * spec.hidden_size
    return ParameterCounts(
        total=total,
        active=total - idle,
        routed_experts=routed,
        embedding=model.get_input_embeddings().weight.numel(),
        mtp=depths * module,
        mtp_experts=depths * _size(block, EXPERTS[1:]),
    )


def _size(module: Any, part: str = "") -> int:
    """Elements of the parameters whose name holds `part`."""
    return sum(parameter.numel() for name, parameter in module.named_parameters() if part in name)


def _without_modules(spec: ModelConfig) -> ModelConfig:
    """The same without its MTP modules."""
    without: dict[str, Any] = {"num_nextn_predict_layers": 0}
    return replace(spec, **without) if spec.num_nextn_predict_layers else spec


def decoder_layers(model: Any) -> tuple[str, Any]:
    """Return the name and the list of a model's layers (`model.layers`, GPT-2's `transformer.h`, ALBERT's one, …)."""
    base = model.base_model_prefix
    for name, child in getattr(model, base).named_modules():  # the outermost: experts of a layer may be one too
        if type(child).__name__ == "ModuleList":
            return f"{base}.{name}", child
    raise TypeError(f"{type(model).__name__} has no list of layers")
