"""Any other causal model that transformers and vLLM both know: run from its own config.json, estimated roughly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from framework.models.families.base import ModelConfig, RankLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Generic(ModelConfig):
    """The sizes that estimates need, and the whole config; `of_base` checks that such a model can run."""

    config: str = ""  # config.json as Hugging Face's class holds it
    n_routed_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0

    rough: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing is known of how its sizes hang together."""

    @property
    def num_moe_layers(self) -> int:
        """All layers, where there are experts at all: which of them are dense is not known."""
        return self.num_hidden_layers if self.n_routed_experts else 0

    def hf_config(self) -> PretrainedConfig:
        """Return the config."""
        from transformers import AutoConfig

        found = json.loads(self.config)
        config: PretrainedConfig = AutoConfig.for_model(found.pop("model_type"), **found)
        return config

    @classmethod
    def of_config(cls, config: Any, name: str, dtype: str) -> Self:
        """Read what most configs name alike; what is not there is guessed as the largest that is common."""

        def first(*keys: str, default: Any = None) -> Any:
            return next((v for key in keys if (v := getattr(config, key, None)) is not None), default)

        eos = first("eos_token_id")
        return cls(
            name=name,
            dtype=dtype,  # type: ignore[arg-type]  # checked by whoever asks
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=first("num_key_value_heads"),
            head_dim=first("head_dim"),
            intermediate_size=first("intermediate_size", "ffn_dim", "n_inner", default=4 * config.hidden_size),
            max_position_embeddings=first("max_position_embeddings", "n_positions", default=2048),
            tie_word_embeddings=bool(first("tie_word_embeddings", default=False)),
            bos_token_id=first("bos_token_id"),
            eos_token_id=eos[0] if isinstance(eos, list | tuple) else eos,
            pad_token_id=first("pad_token_id"),
            config=json.dumps(config.to_diff_dict() | {"model_type": config.model_type}, default=str, sort_keys=True),
            n_routed_experts=first("n_routed_experts", "num_experts", "num_local_experts", default=0),
            num_experts_per_tok=first("num_experts_per_tok", default=0),
            moe_intermediate_size=first("moe_intermediate_size", "intermediate_size", default=0),
        )

    def layer_bytes(self, layout: RankLayout, moe: bool) -> tuple[float, float]:
        """Half as much again as grouped queries and a gate: room for what is not known."""
        saved, passing = super().layer_bytes(layout, moe)
        return 1.5 * saved, 1.5 * passing
