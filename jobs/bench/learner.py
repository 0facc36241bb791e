"""The DeepSpeed learner against a plain PyTorch loop of the same model, batch and loss; packed against padded rows.

All variants take turns inside one process, so that what else the machine does hits them alike; ratios are of medians.
`--profile` measures what does not depend on that: a step's peak memory and calls of operators by its tokens, with whole
logits and with those in chunks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any
from unittest import mock

import numpy as np
import torch

from framework.algorithms.projected_logprobs import KEPT_ELEMENTS
from framework.data.packing import pack, pack_padded
from framework.engines.cpu.matmul import stock_matmul
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.models.families.base import ModelConfig
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.packed_attention import packed_logprobs, use_packed_attention
from framework.models.spec import build_model
from framework.objectives.grpo import Grpo
from framework.objectives.policy_rows import Packer, PolicyRows
from framework.types import Minibatch, TrainSample
from jobs.bench._common import report, run_as_worker, spread

PROMPT = 16  # tokens
GRPO = Grpo(kl_coef=0.0)
LR = 1e-4
WARM_UP = 3


def model_config(vocabulary: int = 1024) -> ModelConfig:
    """5.5M parameters: 4 layers, hidden 256, 8 routed experts."""
    return DeepseekV3(
        name="bench", vocab_size=vocabulary, hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=768, max_position_embeddings=1024, q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
        moe_intermediate_size=192, first_k_dense_replace=1, initializer_range=0.02,
    )  # fmt: skip


def samples(lengths: Sequence[int], vocabulary: int) -> tuple[TrainSample, ...]:
    """One sample for each total length."""
    rng = np.random.default_rng(0)
    made = []
    for index, length in enumerate(lengths):
        n = length - PROMPT
        made.append(
            TrainSample(
                f"p{index}", rng.integers(0, vocabulary, PROMPT).astype(np.int32),
                rng.integers(0, vocabulary, n).astype(np.int32), float(rng.normal()),
                np.full(n, -np.log(vocabulary), np.float32), np.zeros(n, np.int32),
            )
        )  # fmt: skip
    return tuple(made)


def skewed(tokens: int, longest: int) -> list[int]:
    """Lengths of a mix with most responses short and a few at the limit, about `tokens` in all."""
    rng = np.random.default_rng(1)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(longest if rng.random() < 0.1 else int(rng.integers(PROMPT + 4, PROMPT + longest // 8)))
    return lengths


class TorchLoop:
    """What one would write without an engine: same micro-batches, loss, clipping and fused AdamW."""

    def __init__(self, dtype: str, token_budget: int) -> None:
        self.model: Any = build_model(model_config(), seed=0)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
        use_packed_attention(self.model)
        self.model.train()
        parameters = list(self.model.parameters())
        self.masters = [p.detach().float().clone() for p in parameters] if dtype == "bfloat16" else parameters
        self.parameters, self.token_budget = parameters, token_budget
        self.optimizer = torch.optim.AdamW(self.masters, lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def stock_step(self, minibatch: Minibatch) -> None:
        """One optimizer step with PyTorch's own choice of matrix library."""
        with stock_matmul():
            self.step(minibatch)

    def step(self, minibatch: Minibatch) -> None:
        """One optimizer step with the engine's (`engines.cpu_matmul`)."""
        n_tokens = sum(len(sample.response_ids) for sample in minibatch.samples)
        for micro in pack(minibatch.samples, self.token_budget):
            output = GRPO.loss(packed_logprobs(self.model, micro).logprobs_T, micro)
            (output.loss / GRPO.denominator(minibatch.n_responses, n_tokens)).backward()
        if self.masters is not self.parameters:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = parameter.grad.float() if parameter.grad is not None else None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        if self.masters is not self.parameters:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)
        for parameter in self.parameters:
            parameter.grad = None


def deepspeed_learner(dtype: Any, token_budget: int, packer: Packer = pack) -> PublishedPolicy:
    """ZeRO-1 with AutoEP, as the GRPO stage runs it."""
    config = DeepSpeedConfig(dtype=dtype, token_budget=token_budget, schedule=LrSchedule(lr=LR), bias_update_speed=1e-3)
    return PublishedPolicy(build_model(model_config(), seed=0), config, PolicyRows(GRPO, packer=packer))


def interleaved(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(WARM_UP + repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if index >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench learner`."""
    parser = argparse.ArgumentParser(prog="framework bench learner", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048], help="tokens of a step")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="memory and calls of operators by tokens instead")
    parser.add_argument("--vocabulary", type=int, default=32_768, help="with --profile")
    arguments = parser.parse_args(argv)
    run_as_worker(arguments.threads)
    torch.set_num_threads(arguments.threads)
    if arguments.profile:
        found = [
            profiled(tokens, arguments.vocabulary, whole) for tokens in arguments.tokens for whole in (True, False)
        ]
        report("learner_profile", found, {"peak_mib": "above what the step began with"})
        return 0
    rows, notes = [], dict[str, Any]()
    budget = max(arguments.tokens)
    plain, learner = TorchLoop(arguments.dtype, budget), deepspeed_learner(arguments.dtype, budget)
    vocabulary = model_config().vocab_size
    for tokens in arguments.tokens:
        batch = Minibatch.of(samples([64] * (tokens // 64), vocabulary))
        steps = {
            "torch": lambda b=batch: plain.stock_step(b),
            "torch, our products": lambda b=batch: plain.step(b),
            "deepspeed": lambda b=batch: learner.train_minibatch(b),
        }
        seconds = interleaved(steps, arguments.repeats)
        rows += [row(name, "equal", tokens, arguments.dtype, values) for name, values in seconds.items()]
        for loop in list(steps)[:2]:
            notes[f"deepspeed / {loop}, {tokens} tokens a step"] = ratio(seconds[loop], seconds["deepspeed"])
    lengths = skewed(4 * budget, longest=min(512, budget))
    batch = Minibatch.of(samples(lengths, vocabulary))
    padding = deepspeed_learner(arguments.dtype, budget, pack_padded)
    steps = {
        "packed": lambda: learner.train_minibatch(batch),
        "padded": lambda: padding.train_minibatch(batch),
    }
    seconds = interleaved(steps, max(5, arguments.repeats // 3))
    rows += [row(name, "skewed", sum(lengths), arguments.dtype, values) for name, values in seconds.items()]
    notes["packed / padded, skewed lengths"] = ratio(seconds["padded"], seconds["packed"])
    report("learner", rows, notes)
    return 0


def profiled(tokens: int, vocabulary: int, whole: bool) -> dict[str, Any]:
    """One step on rows of 512 tokens under the profiler; `whole`: all logits at once, however many."""
    from torch.profiler import ProfilerActivity, profile

    config = DeepSpeedConfig(token_budget=tokens, gradient_checkpointing=True, schedule=LrSchedule(lr=LR))
    learner = PublishedPolicy(build_model(model_config(vocabulary), seed=0), config, PolicyRows(GRPO))
    batch = Minibatch.of(samples([512] * (tokens // 512), vocabulary))
    with mock.patch.dict(KEPT_ELEMENTS, {"cpu": 1 << 62} if whole else {}):
        learner.train_minibatch(batch)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            learner.train_minibatch(batch)
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    sizes = list(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    calls = sum(event.count for event in profiler.key_averages() if event.key.startswith("aten::"))
    seconds = sum(event.self_cpu_time_total for event in profiler.key_averages()) / 1e6
    return {
        "logits": "whole" if whole else "in chunks", "vocabulary": vocabulary, "tokens": tokens,
        "peak_mib": round(max(sizes) / 2**20), "calls": calls, "cpu_s": round(seconds, 2),
    }  # fmt: skip


def row(name: str, lengths: str, tokens: int, dtype: str, seconds: list[float]) -> dict[str, Any]:
    """One line of the table."""
    found = spread(seconds)
    timing = {"ms": 1e3 * found["median"], "min_ms": 1e3 * found["min"], "tokens_per_s": tokens / found["median"]}
    return {"variant": name, "lengths": lengths, "tokens": tokens, "dtype": dtype} | timing


def ratio(baseline: list[float], ours: list[float]) -> float:
    """Speed of ours relative to the baseline, by medians."""
    return spread(baseline)["median"] / spread(ours)["median"]


if __name__ == "__main__":
    raise SystemExit(main())
