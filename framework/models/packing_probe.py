"""Whether rows of a model of an unknown family can be packed: a forward without weights shows what layers ask for."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from framework.models.packed_attention import NOT_BUILT
from framework.models.spec import model_class

PROBE, TOKENS = "packing_probe", 8


def why_not_packed(config: Any) -> str:
    """Return why segments of a packed row would not stay apart in such a model; empty if they do.

    Every layer must attend through transformers' interface, with no state beside it, and take positions as they are
    given. The model is built on the meta device: no memory is used, whatever its size.
    """
    from transformers import AttentionInterface

    kind = model_class(config)
    if getattr(kind, "_is_stateful", False) or not getattr(kind, "_supports_attention_backend", False):
        return "its layers do not attend through transformers' interface"
    if "position_ids" not in inspect.signature(kind.forward).parameters:
        return "it takes no positions"
    seen: list[dict[str, Any]] = []

    def record(
        _module: Any, query: torch.Tensor, _key: Any, value: torch.Tensor, attention_mask: Any = None, **more: Any
    ) -> tuple[torch.Tensor, None]:
        seen.append(more | {"attention_mask": attention_mask})
        batch, heads, tokens, _ = query.shape
        return query.new_zeros(batch, tokens, heads, value.shape[-1]), None

    AttentionInterface.register(PROBE, record)
    what = "building it"
    with torch.device("meta"):
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        try:
            model = kind._from_config(config, dtype=torch.bfloat16)  # which grouped products of experts ask for
            model.set_attn_implementation(PROBE)
            what = "a forward"
            model(input_ids=ids, position_ids=torch.arange(TOKENS)[None], use_cache=False)
        except Exception as error:
            return f"{what} fails ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if len(seen) != config.num_hidden_layers:
        return f"{len(seen)} of its {config.num_hidden_layers} layers attend through transformers' interface"
    asked = {key for more in seen for key in ("attention_mask", *NOT_BUILT) if more.get(key) is not None}
    return f"its attention asks for {', '.join(sorted(asked))}" if asked else ""
