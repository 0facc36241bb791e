"""The rollout actor against bare `vllm.LLM.generate`: same prompts, sampling, engine options and core.

Both engines live in actors of their own on one core and take turns, so that what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from framework.engines.vllm_engine import VllmConfig
from framework.roles.rollout import RolloutWorker
from framework.types import Prompt, SamplingParams
from jobs.bench._checkpoints import save_checkpoint, tiny_v3
from jobs.bench._common import report, spread

MAX_MODEL_LEN = 128
ACTOR = "rollout actor"


class BareVllm:
    """What one would write without a framework: `vllm.LLM` in its own process, token ids, logprobs and text out."""

    def start(self, checkpoint: Path, dtype: str, core: int) -> None:
        """Load the model on one core, with the rollout worker's options."""
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_MLA_DISABLE="1", VLLM_LOGGING_LEVEL="ERROR")
        os.sched_setaffinity(0, {core})
        from vllm import LLM

        self.llm = LLM(
            model=str(checkpoint),
            dtype=dtype,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=256,
            kv_cache_memory_bytes=2**30,
            enforce_eager=True,
            compilation_config={"custom_ops": ["-rotary_embedding"]},  # vLLM's own is wrong for this model on a CPU
        )

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams, text: bool) -> int:
        """Answer all prompts, with or without making text of it; return the number of tokens."""
        from vllm import SamplingParams as VllmParams

        vllm_params = VllmParams(
            n=params.n, temperature=params.temperature, max_tokens=params.max_tokens, logprobs=0, detokenize=text
        )
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts], vllm_params, use_tqdm=False
        )
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)


async def measure(workers: dict[str, Callable[[], Awaitable[int]]], rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each worker in every round, taking turns; the first round warms up and is left out."""
    speeds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(rounds + 1):
        for name, sample in workers.items():
            began = time.perf_counter()
            tokens = await sample()
            if turn:
                speeds[name].append(tokens / (time.perf_counter() - began))
    return speeds


def main(argv: list[str]) -> int:
    """Print and store tokens per second, and ratios of medians (goal: at least 0.97 of vllm.LLM)."""
    parser = argparse.ArgumentParser("framework bench rollout", description=__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args(argv)
    import ray

    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as directory:
        checkpoint = save_checkpoint(tiny_v3(), Path(directory) / "model")
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}}
        ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=directory, runtime_env=environment)
        try:
            speeds = asyncio.run(_compare(options, checkpoint))
        finally:
            ray.shutdown()
    median = {name: spread(values)["median"] for name, values in speeds.items()}
    rows = [
        {"sampler": name, **spread(values), "actor / this": median[ACTOR] / median[name]}
        for name, values in speeds.items()
    ]
    notes = {"unit": "response tokens per second"}
    report("rollout", rows, {**notes, **vars(options)})
    return 0


async def _compare(options: argparse.Namespace, checkpoint: Path) -> dict[str, list[float]]:
    import ray

    config = VllmConfig(dtype=options.dtype, max_model_len=MAX_MODEL_LEN, cores=(options.core,), mla=False)
    worker: Any = ray.remote(RolloutWorker).options(num_cpus=1, max_concurrency=1000).remote(config)
    bare: Any = ray.remote(BareVllm).options(num_cpus=1).remote()
    await asyncio.gather(worker.start.remote(checkpoint), bare.start.remote(checkpoint, options.dtype, options.core))
    prompts = [
        Prompt(str(i), "", "", "", token_ids=(10 + i, 20, 30, 40, 50, 60, 70, 80)) for i in range(options.prompts)
    ]
    params = SamplingParams(max_tokens=options.max_tokens, n=options.group_size)

    def with_actor(seeded: bool) -> Callable[[], Awaitable[int]]:
        async def sample() -> int:
            asked = [replace(params, seed=seed if seeded else None) for seed, _ in enumerate(prompts)]
            calls = (worker.generate.remote(prompt, each) for prompt, each in zip(prompts, asked, strict=True))
            groups = await asyncio.gather(*calls)
            return sum(len(response.token_ids) for group in groups for response in group.responses)

        return sample

    def with_llm(text: bool) -> Callable[[], Awaitable[int]]:
        async def sample() -> int:
            return int(await bare.generate.remote(prompts, params, text))

        return sample

    workers = {
        ACTOR: with_actor(False),
        f"{ACTOR}, a seed a group": with_actor(True),
        "vllm.LLM": with_llm(True),
        "vllm.LLM, no text": with_llm(False),
    }
    return await measure(workers, options.rounds)
