"""Run directories as the framework would leave them, for the tests of what reads them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np

from framework.artifacts import (
    Checkpoint,
    EvalReport,
    PreferenceSet,
    PromptSet,
    RewardCheckpoint,
    TextSet,
    TokenShards,
    write_manifest,
)
from framework.observe.metrics import Tracker
from framework.types import EvalResult, EvalTask, Measured, SampleRow

COMPONENTS = ("accuracy", "format")


def write_run(run_dir: Path, steps: int = 120, layers: int = 3, experts: int = 16, finished: bool = True) -> Path:
    """Write a whole R1-Zero run: pretraining, both evaluations, GRPO. `finished=False` stops inside GRPO."""
    run_dir.mkdir(parents=True)
    config = {"job": {"name": "r1_zero"}, "model": {"name": "v3_tiny"}, "cluster": {"name": "laptop"}, "seed": 0}
    (run_dir / "config.json").write_text(json.dumps(config))
    text = write_artifact(run_dir, "collect", TextSet, {"train-00000.jsonl": '{"id": "0", "text": "2 + 2 = 4"}\n'}, {})
    prompts = write_artifact(run_dir, "prompts", PromptSet, {"train.jsonl": "{}\n", "heldout.jsonl": "{}\n"}, {})
    pretrain(run_dir, 4 * steps, layers, experts)
    base = write_artifact(
        run_dir, "pretrain", Checkpoint, {"config.json": "{}", "tokenizer.json": "{}"}, {"text": text}
    )
    evaluate(run_dir, "base", 0.31, {"checkpoint": base, "prompts": prompts})
    grpo(run_dir, steps, layers, experts, finished)
    if finished:
        zero = write_artifact(
            run_dir, "grpo", Checkpoint, {"config.json": "{ }", "tokenizer.json": "{}"}, {"base": base}
        )
        evaluate(run_dir, "r1_zero", 0.74, {"checkpoint": zero, "prompts": prompts})
    return run_dir


def pretrain(run_dir: Path, steps: int, layers: int, experts: int) -> None:
    noise = np.random.default_rng(0)
    with Tracker(run_dir, "pretrain") as tracker:
        for step in range(1, steps + 1):
            loss = 1.2 + 5 * math.exp(-step / 60) + 0.08 * noise.normal()
            metrics = {"train/loss": loss, "train/lr": 3e-4 * min(1, step / 40), "train/grad_norm": 1 + noise.random()}
            metrics |= {
                "train/tokens_per_s": 12e3 + 500 * noise.normal(),
                "experts/max_over_mean": 1.4 + 0.1 * noise.random(),
            }
            tracker.log(step, metrics)
            if step % 40 == 0:
                tracker.log(step, {"validation/loss": loss + 0.05})
            tracker.expert_load(step, noise.gamma(20, size=(layers, experts)))


def grpo(run_dir: Path, steps: int, layers: int, experts: int, finished: bool) -> None:
    noise = np.random.default_rng(1)
    tracker = Tracker(run_dir, "grpo")
    popularity = noise.gamma(8, size=(layers, experts))
    for step in range(1, steps + 1):
        share = 1 - math.exp(-step / 40)
        accuracy, form = 0.3 + 0.45 * share + 0.03 * noise.normal(), 0.6 + 0.39 * share
        metrics = {
            "reward/mean": accuracy + form, "reward/accuracy": accuracy, "reward/format": form,
            "reward/failed_share": 0.0, "response/length_mean": 30 + 9 * share + noise.normal(),
            "response/length_max": 64.0,
            "response/truncated_share": 0.1 * (1 - share), "loss/policy": 0.01 * noise.normal(),
            "loss/kl": 1e-3 * share, "clip/low": 0.004 * noise.random(), "clip/high": 0.01 * noise.random(),
            "kl/reference": 0.4 * share,
            "kl/old": 0.002 * noise.random(), "mismatch/mean_abs": 0.004 + 0.001 * noise.random(),
            "mismatch/max_abs": 0.06 + 0.02 * noise.random(), "mismatch/k3": 3e-5 * (1 + noise.random()),
            "staleness/mean": 0.5, "staleness/max": 1.0, "groups/zero_std_share": 0.2 + 0.3 * share,
            "time/generate_s": 1.8 + 0.2 * noise.random(), "time/score_s": 0.1, "time/train_s": 1.1,
            "time/sync_s": 0.08, "time/wait_s": 0.2 * noise.random(), "time/step_s": 2.4 + 0.2 * noise.random(),
            "sampled_tokens_per_s": 3900 + 80 * noise.normal(), "train/grad_norm": 0.4 + 0.2 * noise.random(),
            "train/lr": 1e-5, "train/entropy": 1.1 - 0.6 * share,
        }  # fmt: skip
        if step == steps // 3:
            metrics["train/grad_norm"] = float("nan")
        load = noise.gamma(30, size=(layers, experts)) * popularity ** (1 - 0.8 * share)
        ratios = load.max(axis=1) / load.mean(axis=1)
        tracker.log(step, metrics | {"experts/max_over_mean": float(ratios.max())})
        tracker.expert_load(step, load)
        if step % 10 == 0:
            tracker.samples(step, [sample(i, step) for i in range(8)])
    if finished:
        tracker.close()


# checkpoint -> pass@1, language consistency, helpfulness, each of 200 prompts
RECIPE = {
    "v3_base": (0.30, 0.7, 0.1), "r1_zero": (0.80, 0.7, 0.1), "dev1": (0.60, 0.95, 0.2), "dev2": (0.75, 0.99, 0.2),
    "dev3": (0.76, 0.98, 0.6), "r1": (0.78, 0.99, 0.9), "distill_qwen": (0.70, 0.98, 0.6),
    "qwen_zero": (0.72, 0.7, 0.1),
}  # fmt: skip


def write_recipe(run_dir: Path, shift: float = 0.0) -> Path:
    """Write what a run of the whole recipe leaves of its evaluations and its helpful reward model."""
    for label, (right, language, helpful) in RECIPE.items():
        tracker = Tracker(run_dir, label)
        tracker.close()
        recipe_evaluation(run_dir, label, right + shift, language, helpful)
    pairs = write_artifact(run_dir, "helpful_pairs", PreferenceSet, {"train.jsonl": "{}\n"}, {}, {"validation": 100.0})
    shards = write_artifact(run_dir, "helpful_rm_tokens", TokenShards, {"x": ""}, {"preferences": pairs})
    with Tracker(run_dir, "helpful_rm") as tracker:
        for step, accuracy in ((10, 0.6), (20, 0.9)):
            tracker.log(step, {"validation/accuracy": accuracy, "validation/loss": 1 - accuracy})
    files = {"config.json": "{}", "tokenizer.json": "{}"}
    write_artifact(run_dir, "helpful_rm", RewardCheckpoint, files, {"shards": shards})
    return run_dir


def recipe_evaluation(run_dir: Path, label: str, right: float, language: float, helpful: float, name: str = "") -> None:
    scores = {"accuracy": Measured(right, 0.02, 200), "format": Measured(0.9, 0.01, 200),
              "language": Measured(language, 0.01, 200), "helpful": Measured(helpful, 0.03, 50)}  # fmt: skip
    overall = EvalTask("all", 250, 16, right, 0.02, right + 0.08, 1.0, 0.9, 30.0, 0.0, n_judged=200, scores=scores)
    domains = (
        EvalTask("math", 150, 16, right - 0.01, 0.03, right, 1.0, 0.9, 30.0, 0.0),
        EvalTask("programs", 50, 16, 0.25, 0.05, 0.3, 1.0, 0.9, 30.0, 0.0),
        EvalTask("general", 50, 16, None, None, None, None, 0.9, 30.0, 0.0),
    )
    files = {"report.json": json.dumps(asdict(EvalResult(label, overall, (), domains=domains))), "samples.jsonl": ""}
    write_artifact(run_dir, f"eval_{label}{name}", EvalReport, files, {})


def sample(i: int, step: int) -> SampleRow:
    """A response that tries to break out of the page."""
    prompt = f"A conversation between User and Assistant. User: What is {i} + {step}? Assistant:"
    response = f"<think>{i} + {step} is & <script>alert(1)</script> {i + step}</think>\n<answer>{i + step}</answer>"
    right = float(i % 2)
    return SampleRow(
        prompt, response, 1 + right, {"accuracy": right, "format": 1.0}, 2 * right - 1, 24 + i, "stop", step - 1
    )


def evaluate(run_dir: Path, label: str, level: float, inputs: dict[str, str]) -> None:
    def task(name: str, prompts: int, right: float) -> EvalTask:
        return EvalTask(name, prompts, 16, right, (right * (1 - right) / prompts) ** 0.5, min(1, right + 0.1),
                        min(1, right + 0.2), 0.6 + right / 2.7, 31.5, 0.02)  # fmt: skip

    tasks = (task("basic_arithmetic", 64, level + 0.1), task("chain_sum", 64, level), task("gcd", 64, level - 0.1))
    result = EvalResult(label, task("all", 192, level), tasks, {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64.0})
    files = {"report.json": json.dumps(asdict(result)), "samples.jsonl": answers(label)}
    write_artifact(run_dir, f"evaluate_{label}", EvalReport, files, inputs)


def write_artifact(
    run_dir: Path,
    node: str,
    kind: type,
    files: dict[str, str],
    inputs: dict[str, str],
    counts: dict[str, float] | None = None,
) -> str:
    """Write a finished artifact as the store does; returns its content hash."""
    directory = run_dir / "artifacts" / f"{node}-0123456789ab" / "out"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    return write_manifest(
        kind(directory), f"framework.stages.{node}", {}, inputs, "c0de", counts or {"train": 1.0}
    ).content_hash


def answers(label: str) -> str:
    """Evaluated prompts, as the stage writes them."""
    rows = [
        {"prompt_id": f"p{i}", "prompt": f"What is {i} + 1?", "answer": f"ref {i + 1}",
         "responses": [f"{label} says <b>{i + 1}</b>", "another"], "components": [{"accuracy": 1.0}, {}]}
        for i in range(12)
    ]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in rows)
