"""Room for prompts and responses in a sampler that is asked once."""

from __future__ import annotations

from dataclasses import replace

from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.models.families.base import ModelConfig, size_of

BLOCK = 128  # tokens: the sampler's largest block, a cache holds whole ones


def fit_lengths(
    engine: VllmConfig, model: ModelConfig, longest_prompt: int, max_tokens: int
) -> tuple[VllmConfig, int, str]:
    """Return `engine` with room for the longest prompt and its response, the tokens that this may have, and a line.

    Context and response are cut to what model, engine and cache hold, which the line then says; else it is empty.
    Raises UserError if the longest prompt leaves no room.
    """
    limits = {
        f"the model's context of {model.max_position_embeddings:,}": model.max_position_embeddings,
        f"engine.rollout.max_model_len={engine.max_model_len:,}": engine.max_model_len,
    }
    if engine.kv_cache_gib is not None:
        held = int(engine.kv_cache_gib * 2**30 / cache_bytes(engine, model)) // BLOCK * BLOCK
        limits[f"the {held:,} tokens that engine.rollout.kv_cache_gib={engine.kv_cache_gib:g} holds"] = held
    reason, most = min(limits.items(), key=lambda item: item[1])
    room = most - longest_prompt
    if room < 1:
        allowed = f"must be at most {most - 1}: {reason}"
        raise UserError("the longest prompt's tokens", longest_prompt, allowed)
    fitted = replace(engine, max_model_len=longest_prompt + min(max_tokens, room))
    if max_tokens <= room:
        return fitted, max_tokens, ""
    line = f"max_tokens cut from {max_tokens:,} to {room:,}: {reason}, the longest prompt's {longest_prompt:,} less"
    return fitted, room, line


def cache_bytes(engine: VllmConfig, model: ModelConfig) -> float:
    """Bytes that a token leaves in the sampler's cache on each GPU; plain attention keeps latents' heads in full."""
    elements = model.cache_elements(engine.tensor_parallel_size)
    nope, rope = getattr(model, "qk_nope_head_dim", 0), getattr(model, "qk_rope_head_dim", 0)
    if nope and not engine.mla:
        elements = 2 * (nope + rope) * max(model.num_attention_heads / engine.tensor_parallel_size, 1)
    return elements * model.num_hidden_layers * size_of(engine.dtype)
