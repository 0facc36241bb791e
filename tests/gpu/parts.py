"""What the tests run, on either device, each in a process of its own: importing an engine decides where it computes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import flatten
from framework.models.families.base import ModelConfig
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.types import Prompt, SamplingParams
from jobs.bench._checkpoints import save_tokenizer
from tests.learners import minibatch, samples, tiny_learner

V3 = DeepseekV3(  # V3's own head sizes, which its kernels are for
    name="heads of V3", vocab_size=512, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=256, max_position_embeddings=512, q_lora_rank=64, n_routed_experts=8, num_experts_per_tok=2,
    n_group=4, topk_group=2, moe_intermediate_size=64, first_k_dense_replace=1, initializer_range=0.1,
)  # fmt: skip
TOKENS = 96  # of a response


@dataclass(frozen=True)
class Steps:
    """Two optimizer steps and the policy behind them."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    logprobs: Any  # of some responses, end to end


def steps(zero_stage: int, ep_size: int, dtype: str) -> Steps:
    """Take them in this process, one rank of however many."""
    learner = tiny_learner(zero_stage=zero_stage, ep_size=ep_size, dtype=dtype)
    results = [learner.train_minibatch(minibatch(seed=seed)) for seed in (0, 1)]
    losses, norms = (tuple(result.metrics[name] for result in results) for name in ("loss", "grad_norm"))
    return Steps(losses, norms, np.concatenate(learner.logprobs(samples())))


def peak_and_plan(dtype: str) -> tuple[float, float]:
    """Bytes that a training step took at most, and that the plan says it takes."""
    import torch

    from framework.engines.deepspeed_engine import DeepSpeedConfig
    from framework.engines.device import on_gpu
    from framework.models.estimate import training_memory
    from framework.models.families.base import RankLayout
    from framework.models.spec import build_model
    from framework.objectives.grpo import Grpo
    from framework.objectives.policy_rows import PolicyRows
    from framework.types import Minibatch
    from jobs.bench.memory import Case, families, measure

    spec = families(hidden=192, layers=3, vocabulary=2048)["v3"]
    config: Any = DeepSpeedConfig(dtype=dtype, token_budget=768)  # type: ignore[arg-type]
    if not on_gpu():
        case = Case(spec, config, 192)
        return float(measure(case).peak), case.estimate(1).total
    from framework.engines.published_policy import PublishedPolicy

    learner = PublishedPolicy(build_model(spec, 0), config, PolicyRows(Grpo(kl_coef=0.0)))
    rows = tuple(replace(one, response_ids=np.resize(one.response_ids, 191 - len(one.prompt_ids)),
                         sampler_logprobs=np.full(191 - len(one.prompt_ids), -5.0, np.float32))
                 for one in samples(8))  # fmt: skip
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        learner.train_minibatch(Minibatch.of(rows))
    layout = RankLayout(dtype, config.zero_stage, 1, 1, config.token_budget, segment=192, mtp=False)
    return float(torch.cuda.max_memory_allocated()), training_memory(spec, layout).total


def save(spec: ModelConfig, directory: Path, seed: int) -> list[Any]:
    """Write a policy for vLLM; return its tensors as a learner publishes them."""
    from transformers.core_model_loading import revert_weight_conversion

    from framework.models.spec import build_model

    model = build_model(spec, seed)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return list(revert_weight_conversion(model, model.state_dict()).items())


PROMPTS = tuple(Prompt(f"p{i}", "", "", "", token_ids=(5 + i, 40, 41 + i, 7)) for i in range(4))
LONG = Prompt("long", "", "", "", token_ids=(9, 8, 7))
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, n=1)


@dataclass(frozen=True)
class Sampled:
    """Greedy responses after an update, and what a fresh engine of the same weights says to the same tokens."""

    updated: list[list[int]]
    fresh: list[list[int]]
    spanning: list[int]  # of a response that the update came in the middle of, the tokens behind it
    continued: list[int]  # how the fresh engine goes on from the tokens before it


def sampled(folder: Path, config: VllmConfig) -> Sampled:
    """Update an engine while it samples; then ask another that started with these weights."""
    spec = replace(V3, dtype="float32" if config.dtype == "float32" else "bfloat16")
    save(spec, folder / "old", seed=0)
    tensors = save(spec, folder / "new", seed=1)
    return asyncio.run(_sampled(folder, config, tensors))


async def _sampled(folder: Path, config: VllmConfig, tensors: Sequence[Any]) -> Sampled:
    sampler = VllmSampler(config)
    await sampler.start(folder / "old")
    params = replace(GREEDY, max_tokens=config.max_model_len - 8)
    under_way = asyncio.create_task(sampler.generate(LONG, params))
    await asyncio.sleep(0.2)
    await sampler.update_weights([flatten(tensors, 1)])
    (long,) = (await under_way).responses
    updated = await _greedy(sampler, PROMPTS)
    await sampler.stop()
    before = long.token_ids[long.weight_versions == 0].tolist()
    rest = long.token_ids[long.weight_versions == 1].tolist()
    again = VllmSampler(config)
    await again.start(folder / "new", version=1)
    fresh = await _greedy(again, PROMPTS)
    go_on = replace(LONG, token_ids=(*LONG.token_ids, *before))
    (continued,) = (await again.generate(go_on, replace(params, max_tokens=max(1, len(rest))))).responses
    await again.stop()
    return Sampled(updated, fresh, rest, continued.token_ids.tolist())


async def _greedy(sampler: VllmSampler, prompts: Sequence[Prompt]) -> list[list[int]]:
    groups = await asyncio.gather(*(sampler.generate(prompt, GREEDY) for prompt in prompts))
    return [group.responses[0].token_ids.tolist() for group in groups]


def slept(folder: Path, config: VllmConfig) -> tuple[float, float, list[list[int]], list[list[int]]]:
    """Bytes free before and in an engine's sleep, and its greedy responses before it and after."""
    import torch

    tensors = save(replace(V3, dtype="bfloat16"), folder / "model", seed=0)

    async def run() -> tuple[float, float, list[list[int]], list[list[int]]]:
        sampler = VllmSampler(config, sleeps=True)
        await sampler.start(folder / "model")
        before, awake = await _greedy(sampler, PROMPTS), torch.cuda.mem_get_info()[0]
        await sampler.sleep()
        asleep = torch.cuda.mem_get_info()[0]
        await sampler.update_weights([flatten(tensors, 1)])
        after = await _greedy(sampler, PROMPTS)
        await sampler.stop()
        return float(awake), float(asleep), before, after

    return asyncio.run(run())
