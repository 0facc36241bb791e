"""Tiny models, samples and learners that the tests of the training engines share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from framework.data.packing import pack
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.engines.weights import flatten, unflatten
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.spec import build_model
from framework.objectives.dapo import Dapo
from framework.objectives.dr_grpo import DrGrpo
from framework.objectives.grpo import Grpo
from framework.objectives.policy import PolicyObjective
from framework.objectives.policy_rows import Packer, PolicyRows
from framework.types import Minibatch, PublishedWeights, TrainSample

VOCAB = 128
TINY_V3 = DeepseekV3(
    name="tiny", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96,
    max_position_embeddings=256, dtype="float32", q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16,
    qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
    moe_intermediate_size=32, first_k_dense_replace=1, initializer_range=0.08,
)  # fmt: skip


def copied(published: PublishedWeights) -> PublishedWeights:
    """The same with its bytes, for whoever outlives the process that published them."""
    return flatten(unflatten(published), published.version)


def tiny_model(seed: int = 0) -> Any:
    """A float32 V3 model whose correction biases are not zero, so that losing them shows."""
    model = build_model(TINY_V3, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.05 * torch.randn(buffer.shape, generator=generator))
    return model


def tiny_learner(
    seed: int = 0,
    *,
    kl_coef: float = 0.01,
    denominator: Any = "response",
    old_logprobs: Any = "sampler",
    temperature: float = 1.0,
    lr: float = 3e-3,
    packer: Packer = pack,
    ema_decay: float | None = None,
    **engine: Any,
) -> PublishedPolicy:
    """A learner that clips, warms up and updates biases: everything that could depend on how work is split."""
    values: dict[str, Any] = {"bias_update_speed": 1e-3, "clip": 0.5, "token_budget": 128} | engine
    config = DeepSpeedConfig(schedule=LrSchedule(lr=lr, warmup_steps=2), **values)
    objective: PolicyObjective = {
        "response": Grpo(kl_coef=kl_coef, old_logprobs=old_logprobs),
        "token": Dapo(kl_coef=kl_coef, clip_high=0.2),
        "constant": DrGrpo(kl_coef=kl_coef, constant_length=64),
    }[denominator]
    rows = PolicyRows(objective, temperature, packer=packer)
    return PublishedPolicy(tiny_model(seed), config, rows, ema_decay=ema_decay)


def samples(n: int = 9, seed: int = 0) -> tuple[TrainSample, ...]:
    """Responses of very uneven lengths, with plausible sampler logprobs."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        n_prompt, n_response = int(rng.integers(2, 20)), int(rng.choice([1, 3, 8, 30, 60]))
        made.append(
            TrainSample(
                prompt_id=f"p{i}",
                prompt_ids=rng.integers(0, VOCAB, n_prompt).astype(np.int32),
                response_ids=rng.integers(0, VOCAB, n_response).astype(np.int32),
                advantage=float(rng.normal()),
                sampler_logprobs=rng.uniform(-5.2, -4.6, n_response).astype(np.float32),
                weight_versions=np.zeros(n_response, np.int32),
            )
        )
    return tuple(made)


def minibatch(n: int = 9, seed: int = 0) -> Minibatch:
    """`n` samples that stand for `n + 3` responses: three of 20 tokens each were skipped."""
    made = samples(n, seed)
    return Minibatch(made, n_responses=n + 3, n_tokens=sum(len(sample.response_ids) for sample in made) + 60)
