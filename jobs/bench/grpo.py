"""Whole GRPO steps, sampling to optimizer, against TRL's GRPOTrainer: same model, prompts, group size and tokens.

Ours is the GRPO stage as a job runs it: rollout, reward and learner actors over Ray. Both sides are held to the same
cores, take turns in blocks of steps, and sample from one checkpoint whose response lengths are set (`_lengths.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from framework.actors.ray_session import ray_session
from framework.artifacts import Checkpoint, PromptSet
from framework.data.readers import write_prompts
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models.spec import parameter_counts
from framework.objectives import grpo
from framework.observe.curves import PHASES
from framework.rewards.base import RewardConfig
from framework.stages.grpo import Engines, Grpo, GrpoConfig, GrpoInputs
from framework.types import Prompt
from jobs.bench._common import report, spread
from jobs.bench._lengths import EQUAL, SKEWED, Lengths, save_with_lengths
from jobs.bench._peer import peer_python
from jobs.bench._variety import Variety
from jobs.bench.learner import model_config

PROMPTS, GROUP = 32, 8  # of a step
CONTEXT = 192  # tokens of prompt and response
LR = 1e-5  # so small that lengths stay what they are
TRL_ROWS = 64  # padded responses of a micro-batch of TRL's
WARM_UP = 10  # steps of each block that are not counted: kernels are compiled, and heaps grow to their size
LIMITS = {"equal": (EQUAL, 32), "skewed": (SKEWED, 128)}  # lengths, max_tokens


@dataclass(frozen=True)
class Step:
    """One step as either side reports it."""

    seconds: float
    length: float  # mean response, tokens
    truncated: float  # share of responses at the limit
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds, by phase (ours)


@dataclass(frozen=True)
class Setting:
    """What both sides are given."""

    lengths: str
    max_tokens: int
    checkpoint: Path
    prompts: Sequence[Prompt]
    threads: int
    dtype: str


class PeerFailed(Exception):
    """TRL ended with an error."""


class StepRecorder:
    """The stage's tracker; keeps what each step took."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep one step."""
        phases = {name.removeprefix("time/"): metrics[name] for name in PHASES if name in metrics}
        length, truncated = metrics["response/length_mean"], metrics["response/truncated_share"]
        self.steps.append(Step(metrics["time/step_s"], length, truncated, phases))

    def samples(self, step: int, rows: Sequence[Any]) -> None:
        """Not wanted."""

    def expert_load(self, step: int, load_LE: Any) -> None:
        """Not wanted."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Not wanted."""

    def rewind(self, step: int) -> None:
        """Nothing is resumed."""


def run_ours(setting: Setting, steps: int, staleness: int) -> list[Step]:
    """Steps of the GRPO stage with its real actors; rollouts run at most `staleness` versions ahead.

    Workers have one thread: on a tiny model they waste less than one worker's threads do. Roles that take turns have
    one on every core; asynchronous ones share the cores out.
    """
    # The last asynchronous step has nothing left to sample beside it: it doesn't count.
    total = WARM_UP + steps + (1 if staleness else 0)
    settings = GrpoConfig(
        steps=total, prompts_per_step=PROMPTS, group_size=GROUP, minibatches_per_rollout=1,
        max_staleness=staleness, max_tokens=setting.max_tokens, checkpoint_every=total,
        algorithm=grpo.Grpo(kl_coef=0.0), reward=RewardConfig({"variety": Variety()}),
        engine=Engines(
            VllmConfig(dtype=setting.dtype, max_model_len=CONTEXT, mla=False, kv_cache_gib=0.5, enforce_eager=False),
            DeepSpeedConfig(dtype=setting.dtype, weight_decay=0.0, schedule=LrSchedule(lr=LR)),
        ),
    )  # fmt: skip
    stage = Grpo(settings, model_config())
    workers = max(1, setting.threads // 2) if staleness else setting.threads
    cluster = ClusterConfig(cpus=setting.threads, rollout_workers=workers, learner_workers=workers)
    recorder = StepRecorder()
    with tempfile.TemporaryDirectory() as folder, ray_session(cluster):
        prompts = Path(folder) / "prompts"
        prompts.mkdir()
        for name in PromptSet.required:
            write_prompts(prompts / name, setting.prompts)
        runtime = Runtime("grpo", Path(folder) / "work", Path(folder) / "out", 0, cluster, recorder, lambda: False)
        stage.run(GrpoInputs(Checkpoint(setting.checkpoint), PromptSet(prompts)), runtime)
    return recorder.steps[WARM_UP : WARM_UP + steps]


def run_trl(setting: Setting, steps: int, vllm: bool = False, passive: bool = False) -> list[Step]:
    """Steps of TRL's trainer in an interpreter of its own; raises PeerFailed with its error's last line.

    `passive`: idle threads sleep, as ours do. Spinning, OpenMP's default, is faster while nothing else runs.
    """
    arguments = {
        "checkpoint": str(setting.checkpoint), "prompts": [prompt.text for prompt in setting.prompts],
        "prompts_per_step": PROMPTS, "group_size": GROUP, "rows": TRL_ROWS, "max_tokens": setting.max_tokens,
        "max_model_len": CONTEXT, "steps": WARM_UP + steps, "lr": LR, "threads": setting.threads, "vllm": vllm,
        "dtype": setting.dtype,
    }  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(setting.threads), "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_MLA_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    if passive:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    script = Path(__file__).with_name("_trl_grpo.py")
    command = [peer_python(), script, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise PeerFailed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return [Step(**fields) for fields in json.loads(done.stdout.strip().splitlines()[-1])][WARM_UP:]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench grpo`."""
    parser = argparse.ArgumentParser(prog="framework bench grpo", description=__doc__)
    parser.add_argument("--lengths", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=6, help="counted steps of a block")
    parser.add_argument("--rounds", type=int, default=2, help="blocks of each variant")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of both sides")
    parser.add_argument("--threads", type=int, default=2, help="threads and cores of each side")
    arguments = parser.parse_args(argv)
    if any(name.startswith("trl") for name in arguments.variants):
        peer_python()
    if hasattr(os, "sched_setaffinity"):  # inherited by Ray's workers and by the peer
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    rows, notes = [], dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.lengths:
            lengths, limit = LIMITS[name]
            setting = make_setting(name, lengths, limit, arguments.threads, Path(folder), arguments.dtype)
            found, failures = measure(setting, arguments.variants, arguments.steps, arguments.rounds)
            rows += [row(variant, setting, steps) for variant, steps in found.items()]
            notes |= {f"{variant}, {name}": error for variant, error in failures.items()} | compare(name, found)
    notes |= {
        "parameters": parameter_counts(model_config()).total,
        "responses a step": PROMPTS * GROUP,
        "threads": arguments.threads,
        "dtype": arguments.dtype,
    }
    report("grpo" if arguments.dtype == "float32" else f"grpo_{arguments.dtype}", rows, notes)
    return 0


def make_setting(name: str, lengths: Lengths, max_tokens: int, threads: int, folder: Path, dtype: str) -> Setting:
    """Write the checkpoint and make prompts for any number of steps."""
    from framework.data.tokenizer_files import load_tokenizer

    checkpoint = save_with_lengths(model_config(), lengths, folder / name)
    tokenizer = load_tokenizer(checkpoint)
    numbers = np.random.default_rng(0).integers(10, 100, (16 * PROMPTS, 2))
    prompts = []
    for index, (left, right) in enumerate(numbers):
        text = f"{left} + {right} ="
        prompts.append(Prompt(f"p{index}", text, "sum", str(left + right), token_ids=tuple(tokenizer.encode(text))))
    return Setting(name, max_tokens, checkpoint, prompts, threads, dtype)


def measure(
    setting: Setting, variants: Sequence[str], steps: int, rounds: int
) -> tuple[dict[str, list[Step]], dict[str, str]]:
    """Steps of each variant over blocks that take turns, and the error of each that can't run here."""
    found, failures = dict[str, list[Step]](), dict[str, str]()
    for turn in range(rounds):
        for variant in variants:
            if variant in failures:
                continue
            try:
                block = VARIANTS[variant](setting, steps)
            except PeerFailed as error:
                failures[variant] = str(error)
                continue
            found.setdefault(variant, []).extend(block)
            times = "  ".join(f"{step.seconds:.2f}" for step in block)
            print(f"{setting.lengths}, round {turn + 1}, {variant}: {times} s", flush=True)
    return found, failures


def row(variant: str, setting: Setting, steps: Sequence[Step]) -> dict[str, Any]:
    """One line of the table."""
    seconds = spread([step.seconds for step in steps])
    length = fmean(step.length for step in steps)
    phases = {name: spread([s.phases[name] for s in steps if name in s.phases])["median"] for name in steps[-1].phases}
    return {
        "variant": variant, "lengths": setting.lengths, "steps": len(steps), "s": seconds["median"],
        "min_s": seconds["min"], "max_s": seconds["max"], "length": length,
        "truncated": fmean(step.truncated for step in steps),
        "tokens_per_s": PROMPTS * GROUP * length / seconds["median"],
    } | phases  # fmt: skip


def compare(lengths: str, found: Mapping[str, Sequence[Step]]) -> dict[str, Any]:
    """How many times as many response tokens a second ours makes as each mode of TRL's, by median steps."""
    speed = {
        variant: fmean(s.length for s in steps) / spread([s.seconds for s in steps])["median"]
        for variant, steps in found.items()
    }
    return {
        f"{ours} / {peer}, {lengths}": speed[ours] / speed[peer]
        for ours in speed
        for peer in speed
        if ours.startswith("ours") and peer.startswith("trl")
    }


VARIANTS: dict[str, Callable[[Setting, int], list[Step]]] = {
    "ours-sync": lambda setting, steps: run_ours(setting, steps, staleness=0),
    "trl": run_trl,
    "trl-passive": lambda setting, steps: run_trl(setting, steps, passive=True),
    "ours-async": lambda setting, steps: run_ours(setting, steps, staleness=1),
    "trl-vllm": lambda setting, steps: run_trl(setting, steps, vllm=True),
}


if __name__ == "__main__":
    raise SystemExit(main())
