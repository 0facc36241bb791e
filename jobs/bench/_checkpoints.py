"""Random checkpoints for benchmarks: what transformers and vLLM load, with a tokenizer of single bytes."""

from __future__ import annotations

from pathlib import Path

from framework.models.families.base import ModelConfig
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.families.llama import Llama
from framework.models.spec import build_model

FIRST_BYTE = 3  # after the three special tokens


def save_checkpoint(spec: ModelConfig, directory: Path) -> Path:
    """Write a model of these sizes with random weights; its vocabulary must hold the 256 bytes and 3 special tokens."""
    build_model(spec, seed=0).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    """Write a tokenizer of single bytes and three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<bos>", "<eos>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(directory)


def tiny_v3() -> ModelConfig:
    """The sizes of conf/model/v3_tiny.yaml: 1.1M parameters."""
    return DeepseekV3(
        name="bench", vocab_size=512, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=512, dtype="float32", q_lora_rank=64, kv_lora_rank=64,
        qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_group=4,
        topk_group=2, moe_intermediate_size=64, first_k_dense_replace=1, initializer_range=0.02,
    )  # fmt: skip


def dense(megabytes: int) -> ModelConfig:
    """A float32 model of about this size: as many layers of width 512 as fit, or of 1024 from 100 MB on."""
    hidden = 512 if megabytes < 100 else 1024
    layer = 4 * (4 * hidden**2 + 3 * hidden * 4 * hidden) / 1e6  # MB of attention and MLP
    return Llama(
        name="bench", vocab_size=512, hidden_size=hidden, intermediate_size=4 * hidden,
        num_hidden_layers=max(1, round(megabytes / layer)), num_attention_heads=hidden // 64,
        max_position_embeddings=128, dtype="float32",
    )  # fmt: skip
