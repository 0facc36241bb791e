"""One card in ten minutes: tokens/s of sampler and learner, MFU, seconds of a weight update, mismatch, kernels, memory.

Learner and sampler are the actors of a run on one GPU that they share, their model a DeepSeek-V3 of 1.3B parameters
with V3's own head sizes. Without a GPU it ends at once; a test runs the same code on CPU cores with a tiny model.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.actors.ray_session import ray_session
from framework.algorithms.mismatch import measure_mismatch
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.models.estimate import GIB, attention_flops, training_memory
from framework.models.families.base import ModelConfig
from framework.models.families.deepseek_v3 import DeepseekV3
from framework.models.spec import parameter_counts
from framework.objectives.grpo import Grpo
from framework.roles.learner import LearnerConfig, LearnerWorker
from framework.roles.learner_group import LearnerGroup
from framework.roles.placement import Placement, Seats, reserved
from framework.roles.rollout import RolloutWorker
from framework.stages.memory import rank_layout
from framework.types import Minibatch, Prompt, Response, ResponseGroup, SamplingParams, TrainSample
from jobs.bench._checkpoints import FIRST_BYTE, save_checkpoint
from jobs.bench._common import machine, report

WARM_UP, SHOWN = 2, 5  # steps before those that count; kernels named
WAIT_S = 600.0
PEAKS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0}  # dense bf16 TFLOPS
PROMPT = 32  # tokens


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    spec: ModelConfig
    prompts: int
    group: int
    max_tokens: int
    budget: int  # tokens of a micro-batch
    repeats: int  # steps and rounds that count
    rollout: VllmConfig


def on_card() -> Size:
    """For one GPU of 80 GiB: a learner of 1.3B parameters has about 30, the sampler 7 with its cache."""
    spec = DeepseekV3(
        name="bench_gpu", vocab_size=32_768, hidden_size=2048, num_hidden_layers=12, num_attention_heads=16,
        intermediate_size=5632, max_position_embeddings=4096, q_lora_rank=768, n_routed_experts=16,
        num_experts_per_tok=4, n_group=4, topk_group=2, moe_intermediate_size=1024, first_k_dense_replace=1,
    )  # fmt: skip
    return Size(spec, 32, 8, 1024, 16_384, 5, VllmConfig(max_model_len=2048, kv_cache_gib=4.0, enforce_eager=False))


@dataclass(frozen=True)
class Trained:
    """What some optimizer steps of one rank took."""

    seconds: float  # a step, the median
    peak_bytes: int  # of the GPU's memory; 0 without one
    kernels: int  # launched in a step (on a CPU: operators called)
    longest: tuple[tuple[str, float], ...]  # the kernels that took longest in all, and their share of all kernels' time


class MeasuredRank(LearnerWorker):
    """A learner's rank that watches its own steps."""

    def measure(self, minibatch: Minibatch, repeats: int) -> Trained:
        """Take steps, then one under the profiler."""
        import torch

        learner = self._awake
        gpu = learner.engine.device.type == "cuda"
        seconds = []
        for step in range(WARM_UP + repeats):
            if gpu and step == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            learner.train_minibatch(minibatch)  # it reads the loss: the GPU has finished
            seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() if gpu else 0
        kinds = [torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds) as profiler:
            learner.train_minibatch(minibatch)
        calls, times = 0, Counter[str]()
        for event in profiler.key_averages():
            calls += event.count
            times[event.key] += event.self_device_time_total if gpu else event.self_cpu_time_total
        total = max(sum(times.values()), 1)
        longest = tuple((name[:60], spent / total) for name, spent in times.most_common(SHOWN))
        return Trained(float(np.median(seconds[WARM_UP:])), peak, calls, longest)


def measured(size: Size, cluster: ClusterConfig, folder: Path, peak_tflops: float) -> list[dict[str, Any]]:
    """Rows of the table; Ray runs, on the cluster's devices."""
    checkpoint = save_checkpoint(size.spec, folder / "model")
    with reserved(Placement(cluster, 1, 1)) as seats:
        return _measured(size, cluster, checkpoint, seats, peak_tflops)


def _measured(
    size: Size, cluster: ClusterConfig, checkpoint: Path, seats: Seats, peak_tflops: float
) -> list[dict[str, Any]]:
    import ray

    dtype: Any = "bfloat16" if cluster.gpus else "float32"
    engine = DeepSpeedConfig(
        dtype=dtype, token_budget=size.budget, gradient_checkpointing=True, schedule=LrSchedule(lr=1e-5),
    )  # fmt: skip
    config = LearnerConfig(checkpoint, engine, Grpo(kl_coef=0.0))
    learner = LearnerGroup(config, 1, worker=MeasuredRank, actor_options=seats.learner_options())
    (options,), (seat,) = seats.rollout_options(), seats.seats()
    sampler: Any = ray.remote(RolloutWorker).options(max_concurrency=1000, **options).remote(size.rollout, seat)
    try:
        began = time.monotonic()
        start = sampler.start.remote(checkpoint)
        learner.start()
        ray.get(start, timeout=WAIT_S)
        rows: list[dict[str, Any]] = [{"what": "both ready", "value": time.monotonic() - began, "unit": "s"}]
        rows += _sampling(ray, sampler, size)
        rows += _training(learner, size, cluster, engine, peak_tflops)
        return rows + _updating(ray, learner, sampler, size)
    finally:
        learner.shutdown()
        ray.kill(sampler, no_restart=True)


def _prompts(size: Size) -> list[Prompt]:
    tokens = np.random.default_rng(0).integers(FIRST_BYTE, size.spec.vocab_size, (size.prompts, PROMPT))
    return [Prompt(f"p{i}", "", "", "", token_ids=tuple(map(int, row))) for i, row in enumerate(tokens)]


def _sampled(ray: Any, sampler: Any, size: Size, tokens: int) -> list[ResponseGroup]:
    params = SamplingParams(max_tokens=tokens, n=size.group)
    found: list[ResponseGroup] = ray.get(
        [sampler.generate.remote(prompt, params) for prompt in _prompts(size)], timeout=WAIT_S
    )
    return found


def _sampling(ray: Any, sampler: Any, size: Size) -> list[dict[str, Any]]:
    speeds = []
    for turn in range(1 + size.repeats):
        began = time.perf_counter()
        groups = _sampled(ray, sampler, size, size.max_tokens)
        if turn:
            tokens = sum(response.outline.length for group in groups for response in group.responses)
            speeds.append(tokens / (time.perf_counter() - began))
    return [{"what": "sampler", "value": float(np.median(speeds)), "unit": "tokens/s"}]


def _training(
    learner: LearnerGroup, size: Size, cluster: ClusterConfig, engine: DeepSpeedConfig, peak_tflops: float
) -> list[dict[str, Any]]:
    rng, made = np.random.default_rng(0), list[TrainSample]()
    for index in range(2 * size.budget // (PROMPT + size.max_tokens)):
        prompt, ids = (rng.integers(0, size.spec.vocab_size, n).astype(np.int32) for n in (PROMPT, size.max_tokens))
        logprobs = np.full(len(ids), -np.log(size.spec.vocab_size), np.float32)
        made.append(TrainSample(f"p{index}", prompt, ids, (-1.0) ** index, logprobs, np.zeros(len(ids), np.int32)))
    found: Trained = learner.call("measure", Minibatch.of(made), size.repeats)
    length = PROMPT + size.max_tokens
    tokens = len(made) * length
    flops = 6.0 * parameter_counts(size.spec).active * tokens + attention_flops(size.spec, tokens, length)
    rows = [
        {"what": "learner", "value": tokens / found.seconds, "unit": "tokens/s"},
        {"what": "learner, MFU", "value": 100 * flops / found.seconds / (peak_tflops * 1e12), "unit": "%"},
        {"what": "learner, kernels a step", "value": float(found.kernels), "unit": "in two micro-batches"},
    ]
    if found.peak_bytes:
        plan = training_memory(size.spec, rank_layout(engine, 1, cluster, length)).total
        rows.append({"what": "learner, peak memory", "value": found.peak_bytes / GIB, "unit": "GiB"})
        rows.append({"what": "learner, peak memory by the plan", "value": plan / GIB, "unit": "GiB"})
    return rows + [{"what": name, "value": 100 * share, "unit": "% of kernel time"} for name, share in found.longest]


def _updating(ray: Any, learner: LearnerGroup, sampler: Any, size: Size) -> list[dict[str, Any]]:
    """The steps that were timed have moved the weights: they go over, and both engines' logprobs are compared."""
    seconds = []
    for version in (1, 2):
        began = time.perf_counter()
        shares = learner.publish(version)
        ray.get(sampler.update_weights.remote(version, *shares), timeout=WAIT_S)
        seconds.append(time.perf_counter() - began)
    few = replace(size, prompts=min(4, size.prompts), group=min(4, size.group))
    samples = [
        TrainSample(
            g.prompt.id, np.asarray(g.prompt.token_ids, np.int32), r.token_ids, 0.0, r.logprobs, r.weight_versions
        )
        for g in _sampled(ray, sampler, few, min(256, size.max_tokens))
        for r in g.responses
    ]
    gap = measure_mismatch(samples, learner.logprobs(samples), 2)
    return [
        {"what": "weight update, publish to served", "value": seconds[-1], "unit": "s"},
        {"what": "mismatch, mean", "value": gap.mean_abs, "unit": "nats"},
        {"what": "mismatch, largest", "value": gap.max_abs, "unit": f"nats, of {gap.tokens} tokens"},
    ]


def _sampled_arrays(response: Response) -> tuple[Any, float, Any, Any]:
    return response.token_ids, 0.0, response.logprobs, response.weight_versions


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench gpu`. Raises UserError without a GPU, or for one whose peak is unknown."""
    parser = argparse.ArgumentParser(prog="framework bench gpu", description=__doc__)
    parser.add_argument("--tflops", type=float, help="dense bf16 peak of the card, for MFU; known of some")
    arguments = parser.parse_args(argv)
    cards = machine()["gpus"]
    if not cards:
        raise UserError("GPU", "none", "framework bench gpu measures one CUDA device, and nvidia-smi shows none here")
    tflops = arguments.tflops or next((peak for name, peak in PEAKS.items() if name in cards[0]), None)
    if tflops is None:
        raise UserError("--tflops", cards[0], f"give the card's dense bf16 peak; known are {', '.join(PEAKS)}")
    cluster = ClusterConfig(gpus_per_node=1, cpus=8, rollout_cpus=2, learner_cpus=4, colocate=True, object_store_gib=8)
    with tempfile.TemporaryDirectory() as folder, ray_session(cluster):
        rows = measured(on_card(), cluster, Path(folder), tflops)
    slug = re.sub(r"[^a-z0-9]+", "_", cards[0].split(",")[0].lower())
    report(f"gpu_{slug}", rows, {"card": cards[0], "TFLOPS that MFU is of": tflops})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
