"""The GRPO loop's driver at R1-Zero's scale: its memory and processor time for batches of 8,192 long responses.

The loop, its clients, the ledger, the object store and the packing plan are those of a run. Samplers, rewards and
learner ranks are actors that make responses up, look at each token's logprob, and train nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench._common import report

PROMPTS, GROUP, MINIBATCHES = 32, 16, 16  # of a step, of a prompt, of a batch: R1-Zero's 8,192 responses
SIZES = (8, 4, 2, 1)  # a part of these
SAMPLERS, SCORERS, RANKS = 1, 1, 2
TEXT = 3  # characters a token
GPUS, GPU_HOURS, STEPS = 512, 101_000, 10_400  # R1-Zero's training (R1 v2, B.4.4): what share of it the driver takes
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """The driver's process over some batches."""

    responses: int  # of a batch
    tokens: int  # of a response
    start_mib: float  # memory before the first prompt
    private_mib: float  # at most, its own alone
    rss_mib: float  # at most, pages of the object store that it touched counted too
    cpu_s: float  # processor seconds of a batch, all threads
    wall_s: float  # of a batch here


def measure(responses: int, tokens: int, batches: int, store_gib: float) -> Measured:
    """Run the loop in this process, with made-up roles over a Ray of its own."""
    import psutil
    import ray

    from framework.roles.rl_config import RlConfig

    prompts = responses // GROUP // MINIBATCHES
    config = RlConfig(
        steps=MINIBATCHES * batches, prompts_per_step=prompts, group_size=GROUP, minibatches_per_rollout=MINIBATCHES,
        max_tokens=tokens, checkpoint_every=batches, probe_responses=16,
    )  # fmt: skip
    own, recorder = psutil.Process(), _Recorder()
    with tempfile.TemporaryDirectory(prefix="d", dir="/tmp") as folder:
        ray.init(
            address="local", num_cpus=SAMPLERS + SCORERS + RANKS, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", object_store_memory=int(store_gib * 2**30), _temp_dir=f"{folder}/ray",
            runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}},
        )  # fmt: skip
        try:
            with _loop(config, tokens, Path(folder), recorder) as loop, _peaks(own) as peaks:
                start = own.memory_full_info().uss
                began, cpu = time.monotonic(), time.process_time()
                loop.run()
                seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        finally:
            ray.shutdown()
    assert recorder.tokens == [float(responses * tokens)] * batches, recorder.tokens
    mib = 2**20
    return Measured(
        responses, tokens, start / mib, peaks["uss"] / mib, peaks["rss"] / mib, cpu / batches, seconds / batches
    )


@contextmanager
def _peaks(process: Any) -> Iterator[dict[str, int]]:
    """The most memory of a process, looked at all the time by another thread."""
    found, ended = {"uss": 0, "rss": 0}, threading.Event()

    def look() -> None:
        while not ended.wait(0.25):
            info = process.memory_full_info()
            for name in found:
                found[name] = max(found[name], getattr(info, name))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _loop(config: Any, tokens: int, folder: Path, recorder: _Recorder) -> Iterator[Any]:
    import ray

    from framework.actors.pool import WorkerPool, wait_for_any
    from framework.engines.deepspeed_engine import DeepSpeedConfig
    from framework.objectives.grpo import Grpo
    from framework.roles.learner import LearnerConfig
    from framework.roles.learner_group import LearnerGroup
    from framework.roles.ledger import Ledger
    from framework.roles.ray_clients import RayRewards, RayRollouts
    from framework.roles.rl_loop import RlLoop
    from framework.types import Prompt
    from jobs.bench import _driver_roles as roles

    sampler = ray.remote(roles.MadeUpRollouts).options(max_restarts=-1, num_cpus=1, max_concurrency=1000)
    scorer = ray.remote(roles.MadeUpRewards).options(max_restarts=-1, num_cpus=1)
    rollout = WorkerPool("rollout", [sampler.remote(TEXT) for _ in range(SAMPLERS)])
    reward = WorkerPool("reward", [scorer.remote() for _ in range(SCORERS)])
    engine = DeepSpeedConfig(token_budget=2 * (tokens + 1024))
    learner = LearnerGroup(LearnerConfig(folder, engine), RANKS, worker=roles.MadeUpRank)
    prompts = [
        Prompt(f"p{i}", "x" * 500, "made_up", "1", token_ids=tuple(range(200)))
        for i in range(max(config.prompts_per_batch, 64))
    ]
    try:
        yield RlLoop(
            config=config, algorithm=Grpo(), ledger=Ledger(prompts, config.prompts_per_batch, 0, 0),
            rollouts=RayRollouts(rollout, 4), rewards=RayRewards(reward), learner=learner, tracker=recorder,
            directory=folder / "run", policy=folder / "policy",
            wait=lambda: wait_for_any([*rollout.outstanding, *reward.outstanding, *learner.outstanding]),
        )  # fmt: skip
    finally:
        for one in (rollout, reward, learner):
            one.shutdown()


class _Recorder:
    """The loop's tracker; keeps how many tokens each batch trained."""

    def __init__(self) -> None:
        self.tokens: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a batch's."""
        self.tokens.append(metrics["train/trained"])

    def samples(self, step: int, rows: Sequence[Any]) -> None:
        """Not wanted."""

    def expert_load(self, step: int, load_LE: Any) -> None:
        """Not wanted."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Not wanted."""

    def rewind(self, step: int) -> None:
        """Nothing is resumed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench driver`."""
    parser = argparse.ArgumentParser(prog="framework bench driver", description=__doc__)
    parser.add_argument("--tokens", type=int, default=32_768, help="of a response")
    parser.add_argument("--parts", type=int, nargs="+", default=list(SIZES), help="8: an eighth of 8,192 responses")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--store-gib", type=float, default=6.0, help="object store; what it cannot hold goes to disk")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # responses: measured in this process
    arguments = parser.parse_args(argv)
    if arguments.one:
        found = measure(arguments.one, arguments.tokens, arguments.batches, arguments.store_gib)
        print(json.dumps(asdict(found)))
        return 0
    rows = [row(_in_a_process(8192 // part, arguments)) for part in arguments.parts]
    report("driver", rows, notes(rows, arguments.tokens))
    return 0


def _in_a_process(responses: int, arguments: argparse.Namespace) -> Measured:
    """Measure in a driver that has done nothing before."""
    options = {"--one": responses, "--tokens": arguments.tokens, "--batches": arguments.batches}
    options["--store-gib"] = arguments.store_gib
    command = [sys.executable, "-m", "jobs.bench.driver", *(str(word) for pair in options.items() for word in pair)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def row(found: Measured) -> dict[str, Any]:
    """One line of the table."""
    size = found.responses * (found.tokens * (12 + TEXT)) / 2**30
    return {"responses": found.responses, "tokens": found.tokens, "batch_gib": round(size, 2)} | {
        name: round(value, 1) for name, value in asdict(found).items() if isinstance(value, float)
    }


def notes(rows: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """What the numbers stand for, how they grow, and what share of a real batch the driver's time is."""
    found: dict[str, Any] = {
        "simulated": f"{SAMPLERS} sampler, {SCORERS} reward worker, {RANKS} learner ranks, on one machine: responses "
        f"of {tokens:,} random tokens (12 bytes each, {TEXT} characters of text), nothing is sampled or trained",
    }
    if len(rows) > 1:
        sizes = np.array([r["responses"] for r in rows], float)
        for name in ("private_mib", "cpu_s"):
            values = np.array([r[name] for r in rows], float)
            slope, base = np.polyfit(sizes, values, 1)
            off = float(np.abs(slope * sizes + base - values).max() / values.max())
            found[f"{name} = {base:.1f} + n x"] = f"{slope:.3g}, off by at most {100 * off:.0f}% of the largest"
    batch_s = GPU_HOURS / STEPS * MINIBATCHES / GPUS * 3600
    largest = max(rows, key=lambda r: r["responses"])
    found["R1-Zero's batch, s"] = round(batch_s)  # on so many GPUs
    found["driver's share of it"] = largest["cpu_s"] / batch_s
    return found


if __name__ == "__main__":
    raise SystemExit(main())
