"""Model sizes: the published parameter counts, what vLLM needs in the config, memory and time against the anchors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from framework.config import CONF, build_component
from framework.errors import UserError
from framework.models.estimate import pretraining_hours, rl_hours, sampler_memory, training_memory
from framework.models.spec import ModelConfig, build_model, hf_config, parameter_counts

TINY = ModelConfig(
    name="tiny",
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    dtype="float32",
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    moe_intermediate_size=16,
    first_k_dense_replace=1,
)


def shipped(name: str) -> ModelConfig:
    spec = build_component(yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text()), where="model")
    assert isinstance(spec, ModelConfig)
    return spec


def test_v3_has_the_published_parameter_counts() -> None:
    counts = parameter_counts(shipped("v3_671b"))
    assert counts.total / 1e9 == pytest.approx(671.03, abs=0.005)
    assert counts.active / 1e9 == pytest.approx(37, abs=0.7)  # 37.55 with both embeddings; the paper rounds to 37
    assert counts.routed_experts == 58 * 256 * 3 * 7168 * 2048


def test_counts_of_a_dense_model() -> None:
    # DeepSeek-R1-Distill-Qwen-7B: 7.616B
    spec = ModelConfig("qwen_7b", 152064, 3584, 28, 28, 18944, 131072, "qwen2", num_key_value_heads=4)
    counts = parameter_counts(spec)
    assert counts.total / 1e9 == pytest.approx(7.616, abs=0.001)
    assert counts.active == counts.total
    # DeepSeek-R1-Distill-Llama-8B: 8.03B
    llama = ModelConfig("llama_8b", 128256, 4096, 32, 32, 14336, 131072, "llama", num_key_value_heads=8)
    assert parameter_counts(llama).total / 1e9 == pytest.approx(8.03, abs=0.005)


def test_deepseek_config_carries_what_vllm_needs() -> None:
    config = hf_config(TINY).to_dict()
    wanted: dict[str, Any] = {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_nextn_predict_layers": 0,
        "initializer_range": 0.006,
    }
    assert {key: config.get(key) for key in wanted} == wanted


def test_yarn_once_the_context_is_extended() -> None:
    assert hf_config(TINY).rope_parameters["rope_type"] == "default"
    rope = hf_config(shipped("v3_671b")).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["mscale_all_dim"]) == ("yarn", 40, 1.0)


def test_fresh_model_is_seeded_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_model(TINY, seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = build_model(TINY, seed=1), build_model(TINY, seed=2)
    weight = first.model.embed_tokens.weight
    assert torch.equal(weight, again.model.embed_tokens.weight)
    assert not torch.equal(weight, other.model.embed_tokens.weight)
    for tensor in (weight, first.model.layers[1].mlp.experts.gate_up_proj, first.model.layers[1].mlp.gate.weight):
        assert tensor.std().item() == pytest.approx(0.006, rel=0.2)


def test_correction_bias_stays_in_float32() -> None:
    model = build_model(replace(TINY, dtype="bfloat16"), seed=0)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in model.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_group": 3}, "must divide n_routed_experts=4: 1, 2, 4"),
        ({"n_group": 4}, "at least 2 routed experts in each group"),
        ({"topk_group": 3}, "must be 1 to n_group=2"),
        ({"num_experts_per_tok": 3}, "must be 1 to 2"),
        ({"first_k_dense_replace": 5}, "must be 0 to num_hidden_layers=2"),
        ({"hidden_size": 0}, "must be at least 1"),
        ({"architecture": "qwen2", "num_key_value_heads": 3}, "must divide num_attention_heads=2: 1, 2"),
    ],
)
def test_sizes_that_contradict_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        replace(TINY, **change)
    assert error.value.where == f"model.{next(reversed(change))}"


def test_learner_memory_by_hand() -> None:
    counts = parameter_counts(TINY)
    whole = training_memory(TINY, zero_stage=1, ep_size=1, world=1, micro_tokens=8)
    assert whole.weights * 2**30 == pytest.approx(4 * counts.total)
    assert whole.optimizer * 2**30 == pytest.approx(12 * counts.total)
    spread = training_memory(TINY, zero_stage=1, ep_size=2, world=4, micro_tokens=8)
    assert spread.weights * 2**30 == pytest.approx(4 * (counts.total - counts.routed_experts / 2))
    assert spread.optimizer == pytest.approx(whole.optimizer / 4)
    zero2 = training_memory(TINY, zero_stage=2, ep_size=2, world=4, micro_tokens=8)
    assert zero2.gradients * 2**30 == pytest.approx(4 * counts.total / 4)
    assert zero2.weights == spread.weights


def test_v3_fits_on_512_gpus_under_zero_3_only() -> None:
    spec = shipped("v3_671b")
    assert training_memory(spec, 1, 64, 512, 16384).total > 80
    assert training_memory(spec, 3, 64, 512, 16384).total < 80


def test_kv_cache_of_the_latent() -> None:
    # V3: 512 + 64 values for a token in a layer (recipe: V2 section 2.1)
    memory = sampler_memory(shipped("v3_671b"), gpus=8, cached_tokens=2**20)
    assert memory["KV cache"] * 8 * 2**30 == 2**20 * 61 * (512 + 64) * 2


def test_hours_reproduce_the_published_ones() -> None:
    spec = shipped("v3_671b")
    assert pretraining_hours(spec, 14.8e12, 2048, 989, 0) * 2048 == pytest.approx(2_664_000, rel=0.02)
    assert rl_hours(spec, 10_400 * 512 * 8_000, 512, 989, 0) * 512 == pytest.approx(101_000, rel=0.02)
    assert pretraining_hours(TINY, 1e6, 0, 989, 2) == pytest.approx(pretraining_hours(TINY, 2e6, 0, 989, 4))
