"""Every family's checkpoint, as the learner writes it, in transformers and in vLLM: one policy throughout.

Two learner ranks (experts split over both) measure logprobs of fixed sequences in packed rows, export, take a step,
publish and export again. transformers' own implementation reads both exports; vLLM reads the first and receives what
was published, and the logprobs it reports for what it samples must be transformers' for the same tokens.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engines.checkpoint import load_hf
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.engines.sharded_load import load_sharded
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.models.families.base import ModelConfig, recast
from framework.models.families.deepseek import DeepseekMoe
from framework.models.families.deepseek_v2 import DeepseekV2
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.families.llama import Llama
from framework.models.families.qwen2 import Qwen2
from framework.models.spec import build_model
from framework.objectives.grpo import Grpo
from framework.objectives.policy_rows import PolicyRows
from framework.types import Float32, Minibatch, Prompt, PublishedWeights, SamplingParams, TrainSample
from tests.distributed import run_ranks
from tests.learners import copied

pytestmark = pytest.mark.slow

CONTEXT = 160
# Rotary embeddings stretched from 16 tokens, so nearly all positions feel it; weights so large that routes differ.
V3 = DeepseekV3(
    name="tiny", vocab_size=320, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=CONTEXT, dtype="float32", q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16,
    qk_rope_head_dim=16, v_head_dim=24, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
    moe_intermediate_size=32, first_k_dense_replace=1, initializer_range=0.15, rope_factor=10.0,
    original_max_position_embeddings=16,
)  # fmt: skip
V2 = recast(
    V3, DeepseekV2, norm_topk_prob=False, n_shared_experts=2, rope_mscale=0.707,
    routed_scaling_factor=16.0,
)  # fmt: skip
MOE = recast(
    V2, DeepseekMoe, num_attention_heads=2, n_group=1, topk_group=1, rope_factor=1.0,
    routed_scaling_factor=1.0,
)  # fmt: skip
V1 = recast(V3, Llama, num_attention_heads=2, num_key_value_heads=1, rope_factor=1.0, rms_norm_eps=1e-5)
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}  # as published
FAMILIES = {
    "v1": V1,
    "moe": MOE,
    "v2": V2,
    "v3": replace(V3, num_nextn_predict_layers=1),
    "qwen": recast(V1, Qwen2),
    "llama": replace(V1, rope_type="llama3", rope_factor=8.0, rope_theta=5e5),
    "v2_lite_latent": replace(V2, q_lora_rank=None, n_group=1, topk_group=1, routed_scaling_factor=1.0, **LATENT),
    "v3_latent": replace(V3, **LATENT),
}
WHEN = ("before", "after")  # a step
PROMPT = tuple(range(5, 25))


def sequences() -> tuple[TrainSample, ...]:
    rng, made = np.random.default_rng(0), []
    for i, length in enumerate((30, 149, 1, 80, 80, 149)):
        prompt, response = (rng.integers(3, 259, size).astype(np.int32) for size in (9, length))
        logprobs, versions = np.full(length, -5.5, np.float32), np.zeros(length, np.int32)
        made.append(TrainSample(f"p{i}", prompt, response, (-1.0) ** i, logprobs, versions))
    return tuple(made)


@dataclass(frozen=True)
class Learned:
    """What one rank has to tell of a family."""

    logprobs: dict[str, list[Float32]]  # by WHEN
    published: PublishedWeights


def varied(spec: ModelConfig) -> Any:
    """A model in which no vector is all zeros or ones: norms, biases of projections and of routing."""
    model, generator = build_model(spec, seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and "inv_freq" not in name:
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    return model


def learn(directory: Path) -> dict[str, Learned]:
    """On each of two ranks."""
    found = {}
    for name, spec in FAMILIES.items():
        config = DeepSpeedConfig(
            schedule=LrSchedule(lr=3e-3), token_budget=2 * CONTEXT, ep_size=2 if spec.num_moe_layers else 1
        )
        learner = PublishedPolicy(varied(spec), config, PolicyRows(Grpo(kl_coef=0.0)))
        learner.export(directory / name / "before")
        before = learner.logprobs(sequences())
        if name in ("v1", "v3"):
            _check_sharded_loading(directory / name / "before", config, before)
        learner.train_minibatch(Minibatch.of(sequences()))
        published = copied(learner.publish())  # this process ends before it is read
        learner.export(directory / name / "after")
        found[name] = Learned({"before": before, "after": learner.logprobs(sequences())}, published)
    return found


def _check_sharded_loading(checkpoint: Path, config: DeepSpeedConfig, expected: list[Float32]) -> None:
    """Of this rank's experts alone, and under ZeRO-3 of shards alone: the same policy, which takes the same step."""
    learned = []
    for stage, load in ((1, load_sharded), (3, load_sharded), (3, lambda at, config: load_hf(at, config.dtype))):
        engine = replace(config, zero_stage=stage)
        learner = PublishedPolicy(load(checkpoint, engine), engine, PolicyRows(Grpo(kl_coef=0.0)))
        assert all(np.array_equal(a, b) for a, b in zip(expected, learner.logprobs(sequences()), strict=True))
        learner.train_minibatch(Minibatch.of(sequences()))
        learned.append(np.concatenate(learner.logprobs(sequences())))
    np.testing.assert_array_equal(learned[1], learned[2])
    assert _relative_error(learned[0], learned[1]) <= 1e-4


def sample(directory: Path, shares: dict[str, list[PublishedWeights]], mla: bool) -> dict[str, list[Any]]:
    """In a process of its own, an engine after the other: token ids and logprobs of six responses before and after."""
    return {
        name: asyncio.run(_sample(directory / name / "before", published, mla)) for name, published in shares.items()
    }


async def _sample(checkpoint: Path, published: list[PublishedWeights], mla: bool) -> list[Any]:
    config = VllmConfig(
        dtype="float32", max_model_len=CONTEXT, max_num_seqs=8, kv_cache_gib=0.05, mla=mla, warm_up=False,
        cores=(min(os.sched_getaffinity(0)),),
    )  # fmt: skip
    sampler, params = VllmSampler(config), SamplingParams(max_tokens=100, n=6)
    await sampler.start(checkpoint)
    try:
        groups = [await sampler.generate(Prompt("p", "", "", "", token_ids=PROMPT), params)]
        await sampler.update_weights(published)
        groups.append(await sampler.generate(Prompt("p", "", "", "", token_ids=PROMPT), params))
    finally:
        await sampler.stop()
    return [[(r.token_ids, r.logprobs) for r in group.responses] for group in groups]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def learned(directory: Path) -> list[dict[str, Learned]]:
    ranks: list[dict[str, Learned]] = run_ranks(learn, 2, directory)
    for name in FAMILIES:
        for when in WHEN:
            _write_tokenizer(directory / name / when)
    return ranks


@pytest.fixture(scope="module")
def sampled(directory: Path, learned: list[dict[str, Learned]]) -> dict[str, list[Any]]:
    shares = {name: [rank[name].published for rank in learned] for name in FAMILIES}
    found: dict[str, list[Any]] = {}
    for mla in (False, True):  # vLLM's two ways to compute latent attention; read once a process
        of_kind = {name: published for name, published in shares.items() if name.endswith("_latent") is mla}
        found |= run_ranks(sample, 1, directory, of_kind, mla)[0]
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_reads_what_the_learner_writes_and_computes_the_same(
    name: str, directory: Path, learned: list[dict[str, Learned]]
) -> None:
    from transformers import AutoModelForCausalLM

    by_when = learned[0][name].logprobs
    for when in WHEN:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory / name / when, dtype=torch.float32, output_loading_info=True
        )
        module = f"model.layers.{V3.num_hidden_layers}."  # transformers builds no MTP modules
        extra = {key.startswith(module) for key in report.pop("unexpected_keys")}
        assert extra == ({True} if name == "v3" else set())
        assert not any(report.values()), report
        for row, ours in zip(sequences(), by_when[when], strict=True):
            theirs = _logprobs(model, row.prompt_ids, row.response_ids)
            assert _relative_error(ours, theirs) <= 1e-5
        same = load_hf(directory / name / when, "float32").state_dict()
        assert all(torch.equal(same[key], tensor) for key, tensor in model.state_dict().items())
    moved = [_relative_error(a, b) for a, b in zip(*by_when.values(), strict=True)]
    assert max(moved) > 0.01


@pytest.mark.parametrize("name", FAMILIES)
def test_vllm_samples_from_the_policy_that_transformers_reads(
    name: str, directory: Path, sampled: dict[str, list[Any]]
) -> None:
    for when, responses in zip(WHEN, sampled[name], strict=True):
        model = load_hf(directory / name / when, "float32")
        assert sum(len(ids) for ids, _ in responses) > 100
        for ids, logprobs in responses:
            assert _relative_error(logprobs, _logprobs(model, PROMPT, ids)) <= 1e-4


@torch.no_grad()
def _logprobs(model: Any, prompt: Any, response: Any) -> Float32:
    ids = torch.tensor([[*map(int, prompt), *map(int, response)]])
    logprobs_RV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs_RV.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def _relative_error(ours: Float32, theirs: Float32) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<bos>", "<eos>", "<pad>"])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [])), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(directory)
