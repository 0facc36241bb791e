"""The family of a checkpoint directory, or the reason why a model of its kind cannot run."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.models import families
from framework.models.families.base import ModelConfig
from framework.models.families.generic import Generic
from framework.models.families.windows import FULL, SLIDING
from framework.models.table import READERS

# Keys of configs that say what a run may well do otherwise, or what has no bearing on it.
DOES_NOT_COUNT = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("initializer_range", "output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("router_aux_loss_coef", "pretraining_tp", "id2label", "label2id", "problem_type", "chunk_size_feed_forward"),
    *("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "classifier_dropout"),
    *("aux_loss_alpha", "seq_aux", "ep_size", "auto_map", "quantization_config", "topk_method", "scoring_func"),
    *("max_window_layers", "is_decoder", "num_mtp_layers", "num_nextn_predict_layers", "head_dim", "qk_head_dim"),
}


@cache
def known_families() -> dict[str, type[ModelConfig]]:
    """Hugging Face's `model_type` -> the family whose file is in this package."""
    found: dict[str, type[ModelConfig]] = {}
    for module in pkgutil.iter_modules(families.__path__):
        for _, member in inspect.getmembers(importlib.import_module(f"{families.__name__}.{module.name}")):
            if isinstance(member, type) and issubclass(member, ModelConfig) and member.model_type:
                found[member.model_type] = member
    return found


def of_base(directory: Path, dtype: str = "") -> ModelConfig:
    """Return the sizes of a checkpoint directory's model, in `dtype` or its own.

    Raises UserError for a directory without a readable config.json, and with the reason for a model that cannot run.
    """
    from framework.models.public_layout import read_config

    config, where = read_config(directory), str(directory / "config.json")
    check_kind(config, where)
    own = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
    chosen = dtype or (own if own in ("float32", "bfloat16") else "bfloat16")
    family = known_families().get(config.model_type)
    if family is None:
        check_generic(config, where)
        family = Generic
    return family.of_config(config, directory.resolve().name, chosen)


def reads_alone(directory: Path) -> bool:
    """Whether a checkpoint is of a kind that text is read with and nothing sampled from: an encoder, CTRL."""
    from framework.models.public_layout import read_config

    return str(read_config(directory).model_type) in READERS


def check_same(given: ModelConfig, directory: Path) -> None:
    """Raise UserError for the first field that counts in which `given` differs from the checkpoint's config.json."""
    from framework.models.public_layout import read_config

    ours, found = given.hf_config().to_dict(), read_config(directory).to_dict()
    for key in ("model_type", *sorted(ours.keys() & found.keys())):
        if key in DOES_NOT_COUNT or key.startswith("_") or ours[key] == found[key]:
            continue
        if key.endswith("_token_id") and ours[key] is None:
            continue
        allowed = f"has {key}={ours[key]}, but {directory / 'config.json'} says {found[key]}"
        raise UserError("model", given.name, f"{allowed}: leave model= out")


def check_kind(config: Any, where: str) -> None:
    """Raise UserError for encoders, models that see or hear, and attention of kinds that are not built."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    kind = config.model_type
    for part in ("vision_config", "audio_config", "text_config"):
        if getattr(config, part, None) is not None:
            raise UserError(where, f"{kind} with a {part}", "must be a model of text alone")
    if getattr(config, "is_encoder_decoder", False) or kind in MASKED:
        raise UserError(where, f"model_type={kind}", "must be a causal language model: this one is an encoder")
    architecture = (getattr(config, "architectures", None) or [""])[0]
    expected = CAUSAL.get(kind, "DeepseekForCausalLM")
    if architecture and architecture != expected:
        raise UserError(where, f"architectures={architecture}", f"must be a causal language model: {expected}")
    others = sorted(set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING})
    if others:
        allowed = f"must be {FULL} or {SLIDING}: other kinds are not built"
        raise UserError(where, f"layer_types: {', '.join(others)}", allowed)
    if getattr(config, "attn_logit_softcapping", None):
        raise UserError(where, "attn_logit_softcapping", "must be off: such attention is not built")


def check_generic(config: Any, where: str) -> None:
    """Raise UserError unless a model of a family without a file here packs rows and is known to vLLM."""
    from vllm import ModelRegistry

    from framework.models.packing_probe import why_not_packed
    from framework.models.spec import model_class

    name = model_class(config).__name__
    if name not in ModelRegistry.get_supported_archs():
        raise UserError(where, f"{name}", "is not known to vLLM, which samples")
    reason = why_not_packed(config)
    if reason:
        raise UserError(where, f"model_type={config.model_type}", f"cannot run here: {reason}")
