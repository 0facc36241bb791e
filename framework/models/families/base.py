"""What a model family says of itself: sizes to and from a Hugging Face config, and bytes a token of what it keeps.

A family is a frozen dataclass whose fields are named as in config.json, so that most are read by name. The methods here
are those of a decoder with grouped queries and a gated feed-forward part; a family overrides what it does differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import lcm
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from framework.bounds import Bound, FilledStr, NonNegativeInt, PositiveFloat, PositiveInt, bounded, divisors
from framework.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Family = TypeVar("Family", bound="ModelConfig")


@dataclass(frozen=True)
class RankLayout:
    """What decides the memory of one rank of a DeepSpeed learner, beside the model."""

    dtype: str  # of weights and activations
    zero_stage: int
    ep_size: int
    world: int
    micro_tokens: int  # of a micro-batch
    checkpointing: bool = False
    segment: int = 0  # tokens that attend to each other; needed on CPU only
    on_gpu: bool = True
    mtp: bool = True  # MTP modules train, where the model has any; else their weights stand by
    sp_size: int = 1  # ranks that a row is spread over; `micro_tokens` are one rank's


@dataclass(frozen=True)
@bounded
class ModelConfig:
    """Sizes of a causal language model that every family has. Raises UserError where they contradict each other."""

    name: FilledStr
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: Annotated[int, Bound(least=1, most=10_000)]
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt  # of a dense layer
    max_position_embeddings: PositiveInt
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    num_key_value_heads: PositiveInt | None = None  # None: as many as attention heads
    head_dim: PositiveInt | None = None  # None: hidden_size / num_attention_heads
    # Rotary embedding, stretched once rope_factor > 1: YaRN (V3 section 4.3) or Llama 3's rule
    rope_theta: PositiveFloat = 1e4
    rope_factor: Annotated[float, Bound(least=1)] = 1.0
    rope_type: Literal["yarn", "llama3"] = "yarn"
    original_max_position_embeddings: PositiveInt = 4096
    rope_mscale: PositiveFloat = 1.0
    rope_parameters: str = ""  # as JSON, where config.json has others than those above can say
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    bos_token_id: NonNegativeInt | None = 0
    eos_token_id: NonNegativeInt | None = 1
    pad_token_id: NonNegativeInt | None = 2  # its embedding gets no gradient

    model_type: ClassVar[str] = ""  # Hugging Face's
    architecture: ClassVar[str] = ""  # the class of its pretraining; empty: the causal one of its model_type
    policy: ClassVar[bool] = True  # predicts next tokens on packed rows, and vLLM samples from it
    rough: ClassVar[bool] = False  # whether its estimates are rougher than a tenth

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise UserError where sizes contradict each other."""
        check_heads(self)

    # --- what a family has; the dense families have none of it
    @property
    def n_routed_experts(self) -> int:
        """Experts of a layer that a router chooses from; 0: dense."""
        return 0

    @property
    def n_shared_experts(self) -> int:
        """Experts that every token passes through."""
        return 0

    @property
    def num_experts_per_tok(self) -> int:
        """Routed experts that a token passes through."""
        return 0

    @property
    def moe_intermediate_size(self) -> int:
        """Width of one routed expert."""
        return 0

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts."""
        return 0

    @property
    def experts_a_layer(self) -> int:
        """Routed experts that expert parallelism divides; 0 where no layer has any."""
        return self.n_routed_experts if self.num_moe_layers else 0

    @property
    def num_nextn_predict_layers(self) -> int:
        """Modules of multi-token prediction."""
        return 0

    @property
    def longest_row(self) -> int:
        """Tokens of the longest sequence that it has positions for."""
        return self.max_position_embeddings

    @property
    def short_context(self) -> int:
        """Tokens up to which its rotary embedding is one, whatever the context of who runs it: longrope has two."""
        rope = self.rope()
        if rope.get("rope_type") != "longrope":
            return self.max_position_embeddings
        return int(rope.get("original_max_position_embeddings") or self.original_max_position_embeddings)

    # --- Hugging Face
    def hf_keys(self) -> dict[str, Any]:
        """Return what the family's Hugging Face config is built from."""
        keys: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "rope_parameters": self.rope(),
            "attention_bias": self.attention_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "dtype": self.dtype,
        }
        return keys | ({"head_dim": self.head_dim} if self.head_dim else {})

    def hf_config(self) -> PretrainedConfig:
        """Return the Hugging Face config."""
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

        # The default: one that transformers lacks.
        architecture = self.architecture or CLASSES.get(self.model_type, "DeepseekForCausalLM")
        config: PretrainedConfig = CONFIG_MAPPING[self.model_type](**self.hf_keys(), architectures=[architecture])
        return config

    @classmethod
    def of_config(cls, config: Any, name: str, dtype: str) -> Self:
        """Return the sizes that a Hugging Face config of this family has; raises UserError where it holds others."""
        found = {f.name: getattr(config, f.name) for f in fields(cls) if hasattr(config, f.name)}
        found |= rope_of(config) | cls.renamed(config) | {"name": name, "dtype": dtype}
        if isinstance(found.get("eos_token_id"), list | tuple):  # any of them ends an answer; generation knows them all
            found["eos_token_id"] = found["eos_token_id"][0]
        return cls(**found)

    @classmethod
    def renamed(cls, config: Any) -> dict[str, Any]:
        """Return the fields that a Hugging Face config of this family has under other names."""
        return {}

    def rope(self) -> dict[str, Any]:
        """Return Hugging Face's `rope_parameters`."""
        if self.rope_parameters:
            found: dict[str, Any] = json.loads(self.rope_parameters)
            return found
        if self.rope_factor <= 1:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        common = {
            "rope_type": self.rope_type,
            "rope_theta": self.rope_theta,
            "factor": self.rope_factor,
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }
        if self.rope_type == "llama3":
            return common | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        return common | {
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": self.rope_mscale,
            "mscale_all_dim": self.rope_mscale,
        }

    # --- what it parallelises
    @property
    def head_size(self) -> int:
        """Width of a query head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    def tensor_parallel(self, most: int) -> int:
        """Return over how many GPUs, `most` at most, a sampler can split the heads evenly: vLLM's rule."""
        shared = self.key_value_heads
        fitting = (n for n in divisors(self.num_attention_heads) if n <= most and (shared % n == 0 or n % shared == 0))
        return max(fitting)

    # --- bytes and FLOPs
    def cache_elements(self, gpus: int) -> float:
        """Elements that a token leaves in one layer's cache on each of `gpus` GPUs."""
        return 2 * max(self.key_value_heads / gpus, 1) * self.head_size

    def attention_width(self) -> int:
        """Multiply-adds of attention per head, and pair of a query and a key."""
        return 2 * self.head_size

    def attention_bytes(self, layout: RankLayout) -> tuple[float, float]:
        """(kept for the backward pass, short-lived in it) by attention, per token of one layer, norms apart."""
        heads, width = self.num_attention_heads, self.head_size
        shared = lcm(self.key_value_heads, layout.sp_size)  # repeated where fewer than the ranks that share a row
        kept = (3 * heads + 2 * shared) * width * size_of(layout.dtype)
        return kept, exchange_bytes(heads, width, layout)

    def feed_forward_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """(kept for the backward pass, short-lived in it) by the gated feed-forward part or the experts, per token."""
        size, hidden = size_of(layout.dtype), self.hidden_size
        copies = self.num_experts_per_tok if moe else 0
        width = copies * self.moe_intermediate_size if moe else self.intermediate_size
        saved = 4.0 * width * size  # gate, its activation, up, their product
        if moe:
            saved += (2 * copies * hidden + 4 * self.n_shared_experts * self.moe_intermediate_size) * size
            saved += 12 * self.n_routed_experts + (0 if layout.dtype == "float32" else 4 * hidden)  # router's float32
        # Experts' outputs are weighed and summed in float32: three such tensors, or by one product that keeps them.
        mixing = (12 if layout.on_gpu else 8) * copies * hidden
        saved += 0 if layout.on_gpu else (4 - size) * copies * hidden
        return saved, max((2 * hidden + 1.5 * width) * size, mixing)

    def layer_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """(kept for the backward pass, short-lived in it), per token of one layer."""
        kept, passing = self.attention_bytes(layout)
        more, widest = self.feed_forward_bytes(layout, moe)
        # Two norms; a float32 a head: the softmax's normaliser.
        return 2.0 * norm_bytes(self.hidden_size, layout) + 4 * self.num_attention_heads + kept + more, max(
            passing, widest
        )


def rope_of(config: Any) -> dict[str, Any]:
    """Return the fields of `ModelConfig` that say what a Hugging Face config's `rope_parameters` do."""
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    theta, kind = found.get("rope_theta", 1e4), found.get("rope_type", "default")
    if not found or (kind == "default" and set(found) <= {"rope_type", "rope_theta"}):
        return {"rope_theta": float(theta), "rope_parameters": ""}
    told: dict[str, Any] = {"rope_parameters": ""}
    if kind in ("yarn", "llama3") and "factor" in found:
        told |= {"rope_theta": float(theta), "rope_type": kind, "rope_factor": float(found["factor"])}
        told |= {"rope_mscale": float(found.get("mscale", 1.0))}
        told["original_max_position_embeddings"] = int(found.get("original_max_position_embeddings", 4096))
        probe = ModelConfig("rope", 2, 2, 1, 1, 1, 1, **told)
        if probe.rope() == dict(found):
            return told
    return {"rope_parameters": json.dumps(dict(found), sort_keys=True)}


def check_heads(spec: ModelConfig) -> None:
    """Raise UserError unless heads divide what they share."""
    heads = spec.num_attention_heads
    if spec.head_dim is None and spec.hidden_size % (2 * heads):
        allowed = f"must be an even multiple of num_attention_heads={heads}"
        raise UserError("model.hidden_size", spec.hidden_size, allowed)
    if spec.head_dim is not None and spec.head_dim % 2:
        raise UserError("model.head_dim", spec.head_dim, "must be even: it rotates pairs")
    if spec.num_key_value_heads is not None and heads % spec.num_key_value_heads:
        allowed = f"must divide num_attention_heads={heads}: {', '.join(map(str, divisors(heads)))}"
        raise UserError("model.num_key_value_heads", spec.num_key_value_heads, allowed)


def size_of(dtype: str) -> int:
    """Bytes of an element."""
    return 4 if dtype == "float32" else 2


def exchange_bytes(heads: int, width: int, layout: RankLayout) -> float:
    """Per token, while queries are exchanged (models.sequence_parallel): what is sent, what comes, and it in order."""
    return 0.0 if layout.sp_size == 1 else 3.0 * heads * width * size_of(layout.dtype)


def norm_bytes(width: int, layout: RankLayout) -> int:
    """RMSNorm: its input in float32, that normalised, and its output, which the projections behind it keep.

    On a CPU (models.rms_norm, which normalises again) its input as it is, and its output.
    """
    size = size_of(layout.dtype)
    return width * (4 + 2 * size if layout.on_gpu else 2 * size)


def recast(spec: ModelConfig, family: type[Family], **changes: Any) -> Family:
    """Return the sizes of `spec` in another family, as far as it has fields for them."""
    common = {f.name: getattr(spec, f.name) for f in fields(family) if f.name in {g.name for g in fields(spec)}}
    return family(**(common | changes))
