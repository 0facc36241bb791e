"""The pretraining stage, Ray actors and all, against a plain PyTorch loop of the same model, and on two workers.

Once against PyTorch as it is installed, once with the matrix products of the engine (`engines.cpu.matmul`) in the loop.
Blocks of steps take turns. Speeds are of steps alone: what starting, validating and saving take is in `stage_s`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from framework.actors.ray_session import ray_session
from framework.artifacts import TokenizerDir, TokenShards
from framework.data.shards import TokenRows, write_shards
from framework.engines.cpu.matmul import stock_matmul, use_fast_matmul
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models.families.base import ModelConfig
from framework.models.spec import build_model, parameter_counts
from framework.stages.pretrain import Pretrain, PretrainConfig, PretrainInputs
from jobs.bench._checkpoints import save_tokenizer
from jobs.bench._common import report, run_as_worker, spread
from jobs.bench.learner import model_config

ROW_TOKENS = 256
WARM_UP = 1  # windows of each block that are not counted
WINDOW = 10  # steps between two of the stage's reports
LR = 1e-4
BALANCE = {"bias_update_speed": 1e-3, "balance_alpha": 1e-4}


class SpeedRecorder:
    """The stage's tracker; keeps tokens a second of each window."""

    def __init__(self) -> None:
        self.speeds: list[float] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep one window."""
        if "train/tokens_per_s" in metrics:
            self.speeds.append(metrics["train/tokens_per_s"])

    def samples(self, step: int, rows: Sequence[Any]) -> None:
        """Not wanted."""

    def expert_load(self, step: int, load_LE: Any) -> None:
        """Not wanted."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Not wanted."""

    def rewind(self, step: int) -> None:
        """Nothing is resumed."""


def run_stage(shards: Path, model: ModelConfig, steps: int, rows: int, workers: int, balance: bool) -> list[float]:
    """Tokens a second of each window of the stage, run as a job runs it."""
    engine = DeepSpeedConfig(
        dtype=model.dtype, token_budget=rows * ROW_TOKENS // workers, schedule=LrSchedule(lr=LR),
        **(BALANCE if balance else {}),
    )  # fmt: skip
    config = PretrainConfig(
        steps=steps, rows_per_step=rows, row_tokens=ROW_TOKENS, engine=engine, workers=workers,
        validate_every=steps, validation_rows=1, checkpoint_every=steps,
    )  # fmt: skip
    recorder = SpeedRecorder()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        work = Path(folder) / "work"
        work.mkdir()
        runtime = Runtime("pretrain", work, out, 0, ClusterConfig(), recorder, lambda: False)
        tokenizer = Path(folder) / "tokenizer"
        tokenizer.mkdir()
        save_tokenizer(tokenizer)
        Pretrain(config, model).run(PretrainInputs(TokenShards(shards), TokenizerDir(tokenizer)), runtime)
    return recorder.speeds[WARM_UP:]


class TorchLoop:
    """What one would write without an engine."""

    def __init__(self, shards: Path, model: ModelConfig, rows: int) -> None:
        self.model: Any = build_model(model, seed=0)
        self.model.train()
        self.rows, self.per_step = TokenRows(shards, "train", ROW_TOKENS, seed=0), rows
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.9, 0.95), fused=True)
        self.done = 0

    def run(self, steps: int) -> list[float]:
        """Tokens a second of each window."""
        speeds = []
        for _ in range(steps // WINDOW):
            started = time.perf_counter()
            for _ in range(WINDOW):
                self.step()
            speeds.append(WINDOW * self.per_step * ROW_TOKENS / (time.perf_counter() - started))
        return speeds[WARM_UP:]

    def step(self) -> None:
        """One optimizer step."""
        rows_BT = torch.from_numpy(self.rows.batch(self.done * self.per_step, self.per_step))
        logits_BTV = self.model(input_ids=rows_BT[:, :-1], use_cache=False).logits
        cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1


def stock(loop: TorchLoop, steps: int) -> list[float]:
    """The loop with PyTorch's own choice of matrix library."""
    with stock_matmul():
        return loop.run(steps)


def make_shards(directory: Path, vocabulary: int) -> Path:
    """Random tokens: speed does not depend on what they say."""
    directory.mkdir()
    rng = np.random.default_rng(0)
    splits = {"train": 400_000, "validation": 2 * ROW_TOKENS}
    write_shards(directory, {name: [rng.integers(0, vocabulary, size)] for name, size in splits.items()}, vocabulary)
    return directory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench pretrain`."""
    parser = argparse.ArgumentParser(prog="framework bench pretrain", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of a block")
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {ROW_TOKENS} tokens a step")
    parser.add_argument("--rounds", type=int, default=2, help="blocks of each variant")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args(argv)
    run_as_worker(1)
    torch.set_num_threads(1)
    use_fast_matmul()
    model, rows = replace(model_config(), dtype=arguments.dtype), arguments.rows
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ray_session(ClusterConfig()):
        shards = make_shards(Path(folder) / "shards", model.vocab_size)
        plain = TorchLoop(shards, model, rows)
        variants: dict[str, Callable[[], list[float]]] = {
            "plain torch": lambda: stock(plain, arguments.steps),
            "plain torch, our products": lambda: plain.run(arguments.steps),
            "stage": lambda: run_stage(shards, model, arguments.steps, rows, 1, balance=False),
            "stage, balance loss and bias": lambda: run_stage(shards, model, arguments.steps, rows, 1, balance=True),
            "stage, 2 workers": lambda: run_stage(shards, model, arguments.steps, rows, 2, balance=False),
        }
        for turn in range(arguments.rounds):
            for name, run in variants.items():
                started = time.perf_counter()
                speeds = run()
                seconds.setdefault(name, []).append(time.perf_counter() - started)
                found.setdefault(name, []).extend(speeds)
                print(f"round {turn + 1}, {name}: {spread(speeds)['median']:,.0f} tokens/s", flush=True)
    medians = {name: spread(speeds)["median"] for name, speeds in found.items()}
    table = [
        {
            "variant": name, "dtype": arguments.dtype, "tokens_a_step": rows * ROW_TOKENS, "windows": len(speeds),
            "tokens_per_s": medians[name], "min": min(speeds), "max": max(speeds),
            "stage_s": spread(seconds[name])["median"],
        }
        for name, speeds in found.items()
    ]  # fmt: skip
    plains, stages = list(medians)[:2], list(medians)[2:]
    notes = {f"{stage} / {loop}": medians[stage] / medians[loop] for loop in plains for stage in stages}
    notes["2 workers / 1"] = medians["stage, 2 workers"] / medians["stage"]
    report(
        "pretrain", table, notes | {"parameters": parameter_counts(model).total, "steps of a block": arguments.steps}
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
