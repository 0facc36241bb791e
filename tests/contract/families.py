"""Tiny checkpoints of every family in the public layout, as transformers itself writes them, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONTEXT = 128
WINDOW = 16
VOCABULARY = 300
COMMON: dict[str, Any] = {
    "vocab_size": 304, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 96, "max_position_embeddings": CONTEXT, "initializer_range": 0.12,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
PLAIN = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
TIED = {"tie_word_embeddings": True}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32,
          "num_key_value_heads": 2}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "first_k_dense_replace": 1, "moe_layer_freq": 1, "topk_group": 1, "n_group": 1,
          "routed_scaling_factor": 1.0}  # fmt: skip
V3 = {**ROUTED, "n_shared_experts": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_mtp_layers": 0}
V2 = {**ROUTED, "n_shared_experts": 2, "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 16,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # fmt: skip

# name -> (model_type, keys of its config.json)
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v1": ("llama", COMMON),
    "deepseek_moe": ("deepseek", {**COMMON, **MOE, **V2}),
    "deepseek_v2": ("deepseek_v2", {**COMMON, **LATENT, **MOE, **V2}),
    "deepseek_v3": ("deepseek_v3", {**COMMON, **LATENT, **MOE, **V3, "rope_parameters": YARN}),
    "llama3": ("llama", {**COMMON, "head_dim": 64, "rope_parameters": LLAMA3}),
    "llama3_tied": ("llama", {**COMMON, **TIED, "head_dim": 64}),
    "qwen2": ("qwen2", COMMON),
    "qwen2_tied": ("qwen2", {**COMMON, **TIED}),
    "qwen3": ("qwen3", {**COMMON, "head_dim": 64}),
    "qwen3_tied": ("qwen3", {**COMMON, **TIED, "head_dim": 64}),
    "qwen3_moe": ("qwen3_moe", {**COMMON, **MOE, "head_dim": 32, "num_experts": 4, "norm_topk_prob": True}),
    "mistral": ("mistral", {**COMMON, "sliding_window": WINDOW}),
    "mixtral": ("mixtral", {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi3": ("phi3", COMMON),
    "gpt2": ("gpt2", {"vocab_size": 304, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT,
                      "bos_token_id": None, "eos_token_id": 2, "initializer_range": 0.12}),
    "gpt_neox": ("gpt_neox", PLAIN),
    "gemma3": ("gemma3_text", {**COMMON, **TIED, "head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32,
                               "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("olmo2", COMMON),  # generic
}  # fmt: skip


def write_checkpoint(name: str, directory: Path) -> None:
    """Write random weights, norms and biases too, in transformers' own layout."""
    import torch
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    import framework.models.deepseek_moe  # noqa: F401

    kind, keys = CHECKPOINTS[name]
    config = CONFIG_MAPPING[kind](**keys)
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and "inv_freq" not in key:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    model.save_pretrained(directory)
    write_tokenizer(directory)


def write_tokenizer(directory: Path) -> None:
    """Bytes and a few words, ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["What is 1 + 2? It is 3. user assistant"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    fast.save_pretrained(directory)
