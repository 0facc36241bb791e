"""Model sizes: the published parameter counts, what vLLM needs in the config, memory and time against the anchors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from framework.config import CONF, build_component
from framework.errors import UserError
from framework.models.estimate import (
    describe_parameters,
    pretraining_hours,
    rl_hours,
    sampler_memory,
    training_memory,
)
from framework.models.families.base import ModelConfig, RankLayout, recast
from framework.models.families.deepseek_v2 import DeepseekV2
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.families.llama import Llama
from framework.models.families.qwen2 import Qwen2
from framework.models.spec import build_model, model_class, parameter_counts

TINY = DeepseekV3(
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
    node = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    spec = build_component(node.get("model", node), where="model")  # a published size names its recipe beside it
    assert isinstance(spec, ModelConfig)
    return spec


# Totals in billions, to the digits that the recipe's facts print.
PUBLISHED = {
    "v1_67b": "67.43",
    "moe_16b": "16.38",
    "v2_236b": "235.74",
    "v2_lite": "15.71",
    "v3_671b": "671.03",
    "qwen_1_5b": "1.777",
    "qwen_7b": "7.616",
    "qwen_14b": "14.77",
    "qwen_32b": "32.76",
    "llama_8b": "8.03",
    "llama_70b": "70.55",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_parameters_are_the_published_ones(name: str) -> None:
    digits = len(PUBLISHED[name].partition(".")[2])
    assert f"{parameter_counts(shipped(name)).total / 1e9:.{digits}f}" == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "with_embedding", "without"),
    [("v3_671b", 37.55, 36.63), ("v2_236b", 21.38, 20.85), ("v2_lite", 2.66, 2.45), ("moe_16b", 2.83, 2.62)],
)
def test_active_parameters(name: str, with_embedding: float, without: float) -> None:
    """The papers print 37, 21, 2.4 and 2.8 billion, and do not all count alike.

    DeepSeekMoE's 2.8 needs both embeddings (2.83), V2-Lite's 2.4 leaves out the input embedding (2.45, cut off), V3's
    37 is either (37.55 cut off, or 36.63), V2's 21 too.
    """
    counts = parameter_counts(shipped(name))
    assert counts.active / 1e9 == pytest.approx(with_embedding, abs=0.005)
    assert (counts.active - counts.embedding) / 1e9 == pytest.approx(without, abs=0.005)


def test_v3_with_its_mtp_module() -> None:
    """The recipe's facts say 11.5B unique (our 11.61B has eh_proj in it, 0.10B) and 685B on disk, copies included."""
    spec = shipped("v3_671b")
    counts = parameter_counts(spec)
    eh_proj = 2 * spec.hidden_size**2
    assert f"{(counts.mtp - eh_proj) / 1e9:.1f}" == "11.5"
    assert (counts.total + counts.mtp + 2 * counts.embedding) / 1e9 == pytest.approx(685, abs=0.6)


def test_parameters_in_one_line() -> None:
    expected = "671.03B parameters, 37.55B active (36.63B without input embedding); MTP modules 11.61B"
    assert describe_parameters(shipped("v3_671b")) == expected
    assert describe_parameters(shipped("qwen_7b")) == "7.62B parameters"


def test_counts_of_experts_and_dense_models() -> None:
    assert parameter_counts(shipped("v3_671b")).routed_experts == 58 * 256 * 3 * 7168 * 2048
    counts = parameter_counts(shipped("qwen_7b"))
    assert (counts.active, counts.routed_experts, counts.mtp) == (counts.total, 0, 0)


def test_students_have_their_families_details() -> None:
    qwen, math, llama = (shipped(name).hf_config() for name in ("qwen_14b", "qwen_1_5b", "llama_70b"))
    assert (qwen.rms_norm_eps, math.rms_norm_eps, math.tie_word_embeddings) == (1e-5, 1e-6, False)
    with torch.device("meta"):
        attention = build_model(replace(shipped("qwen_7b"), num_hidden_layers=1), 0).model.layers[0].self_attn
    assert attention.q_proj.bias is not None
    assert attention.o_proj.bias is None
    wanted = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "rope_theta": 5e5}
    assert wanted.items() <= llama.rope_parameters.items()
    assert llama.rope_parameters["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize(("name", "method"), [("v2_236b", "group_limited_greedy"), ("v2_lite", "greedy")])
def test_v2_routes_as_published(name: str, method: str) -> None:
    config = shipped(name).hf_config()
    assert (config.topk_method, config.scoring_func, config.norm_topk_prob) == (method, "softmax", False)
    assert config.rope_parameters["mscale_all_dim"] == 0.707
    assert config.routed_scaling_factor == (16.0 if name == "v2_236b" else 1.0)


def test_deepseek_config_carries_what_vllm_needs() -> None:
    config = TINY.hf_config().to_dict()
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
    assert TINY.hf_config().rope_parameters["rope_type"] == "default"
    rope = shipped("v3_671b").hf_config().rope_parameters
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


@pytest.mark.parametrize("name", ["v1_tiny", "moe_tiny", "v2_tiny", "v3_tiny", "qwen_tiny"])
def test_fresh_weights_are_distributed_as_transformers_draws_them(name: str) -> None:
    modules: dict[str, Any] = {"num_nextn_predict_layers": 1} if name == "v3_tiny" else {}
    spec = replace(shipped(name), dtype="float32", **modules)
    model, theirs = build_model(spec, seed=0), model_class(spec.hf_config())._from_config(spec.hf_config())
    expected = dict(theirs.named_parameters())
    for key, ours in model.named_parameters():
        if ours.dim() == 1:
            assert torch.equal(ours, expected[key]), key
        else:
            assert ours.std().item() == pytest.approx(expected[key].std().item(), rel=0.1), key
            assert torch.equal((ours == 0).all(-1), (expected[key] == 0).all(-1)), key  # the padding token
    assert all(torch.equal(ours, dict(theirs.named_buffers())[key]) for key, ours in model.named_buffers())


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
        ({"n_routed_experts": 0}, "must be at least 1"),
        ({"qk_rope_head_dim": 7}, "must be even"),
        ({"family": DeepseekV2, "norm_topk_prob": True}, "must be false"),
        ({"family": Llama, "hidden_size": 34, "num_attention_heads": 4}, "even multiple of num_attention_h"),
        ({"family": Llama, "head_dim": 7}, "must be even"),
        ({"family": Qwen2, "num_key_value_heads": 3}, "must divide num_attention_heads=2: 1, 2"),
    ],
)
def test_sizes_that_contradict_each_other(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        recast(TINY, change.pop("family", DeepseekV3), **change)
    assert error.value.where.rpartition(".")[2] in change


LAYOUT = RankLayout(dtype="float32", zero_stage=1, ep_size=1, world=1, micro_tokens=8, on_gpu=False)


def test_learner_memory_by_hand() -> None:
    counts = parameter_counts(TINY)
    whole = training_memory(TINY, LAYOUT)
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * counts.total, 4 * counts.total, 12 * counts.total)
    assert sum(whole.gib().values()) == pytest.approx(whole.total / 2**30)
    spread = training_memory(TINY, replace(LAYOUT, ep_size=2, world=4, dtype="bfloat16"))
    resident = counts.total - counts.routed_experts / 2
    # bfloat16 gradients and their float32 sum; two replicas of each expert shard its optimizer, four those of the rest
    assert (spread.weights, spread.gradients) == (2 * resident, 6 * resident)
    assert spread.optimizer == 12 * counts.total / 4
    zero2 = training_memory(TINY, replace(LAYOUT, zero_stage=2, ep_size=2, world=4))
    assert (zero2.weights, zero2.gradients) == (4 * resident, 4 * counts.total / 4)


def test_mtp_modules_train_as_layers_or_stand_by() -> None:
    spec = replace(TINY, num_nextn_predict_layers=2)
    counts, built = parameter_counts(spec), build_model(spec, 0)
    everything = sum(p.numel() for p in built.parameters())
    assert everything == counts.total + counts.mtp
    experts = sum(p.numel() for name, p in built.named_parameters() if ".mlp.experts." in name)
    assert experts == counts.routed_experts + counts.mtp_experts
    whole = training_memory(spec, LAYOUT)
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * everything, 4 * everything, 12 * everything)
    idle, without = training_memory(spec, replace(LAYOUT, mtp=False)), training_memory(TINY, LAYOUT)
    assert idle == replace(without, weights=4 * everything)
    spread = training_memory(spec, replace(LAYOUT, ep_size=2, world=4))
    assert spread.weights == 4 * (everything - experts / 2)


def test_activations_by_hand() -> None:
    """A dense layer: two norms (8 bytes each on a CPU), attention, and the four widths of its feed-forward part."""
    spec = Llama("dense", 64, 32, 3, 2, 48, 64, dtype="float32", num_key_value_heads=1)
    norm, attention = 8 * 32, (3 * 2 + 2) * 16 * 4 + 4 * 2
    layer = 2 * norm + attention + 4 * 48 * 4
    logits, chunk = norm + 2 * 64 * 4, 4 * 64
    assert training_memory(spec, LAYOUT).activations == 8 * (3 * layer + logits + chunk)
    short = (2 * 32 + 1.5 * 48) * 4
    recomputed = training_memory(replace(spec, vocab_size=8), replace(LAYOUT, checkpointing=True))
    assert recomputed.activations == 8 * (3 * 32 * 4 + layer + short)


def test_v3_pretrains_on_512_gpus_under_zero_3_only() -> None:
    spec = shipped("v3_671b")
    layout = RankLayout("bfloat16", 3, 64, 512, 16384, checkpointing=True)
    assert training_memory(spec, layout).total < 72 * 2**30  # its MTP module included
    assert training_memory(spec, replace(layout, zero_stage=2)).total > 80 * 2**30


def test_kv_cache_of_the_latent() -> None:
    # V3: 512 + 64 values for a token in a layer (recipe: V2 section 2.1), which tensor parallelism does not split
    memory = sampler_memory(shipped("v3_671b"), gpus=8, cached_tokens=2**20)
    assert memory["KV cache"] * 2**30 == 2**20 * 61 * (512 + 64) * 2
    for gpus, heads in ((2, 2), (8, 1)):  # four key/value heads
        memory = sampler_memory(shipped("qwen_7b"), gpus=gpus, cached_tokens=2**20)
        assert memory["KV cache"] * 2**30 == 2**20 * 28 * 2 * heads * 128 * 2


def test_hours_reproduce_the_published_ones() -> None:
    spec = shipped("v3_671b")
    assert pretraining_hours(spec, 14.8e12, 2048, 989, 0) * 2048 == pytest.approx(2_664_000, rel=0.02)
    assert rl_hours(spec, 10_400 * 512 * 8_000, 512, 989, 0) * 512 == pytest.approx(101_000, rel=0.02)
    assert pretraining_hours(TINY, 1e6, 0, 989, 2) == pytest.approx(pretraining_hours(TINY, 2e6, 0, 989, 4))
