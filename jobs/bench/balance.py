"""Expert load during pretraining with and without the bias rule (DeepSeek-V3 section 2.1.2), as two curves.

The laptop's model, text, batches and learning rate; no balance loss, so that the bias alone makes the difference. Load
is max / mean tokens per expert over all tokens of a window of steps: 1 is even, E / K the worst there is.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from framework.artifacts import TextSet
from framework.config import RunConfig, compose
from framework.data.shards import TokenRows
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models.spec import build_model
from framework.objectives.lm import StreamLm
from framework.observe.charts import WIDTH, Series, line_chart
from framework.stages.collect import Collect, NoInputs
from framework.stages.tokenizer import Tokenize, TokenizeInputs, TokenizerInputs, TrainTokenizer
from jobs.bench._common import report

COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#888888", "#7d3c98", "#b9770e")


class Quiet:
    """A tracker for stages whose reports nobody reads."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_named: None


def make_shards(config: RunConfig, directory: Path) -> Path:
    """Collect, tokenizer and tokenize stages of the laptop's recipe."""

    def runtime(name: str) -> Runtime:
        (directory / name).mkdir(parents=True)
        return Runtime(name, directory / name, directory / name, config.seed, ClusterConfig(), Quiet(), lambda: False)

    text: TextSet = Collect(config.data).run(NoInputs(), runtime("collect")).text
    settings = config.stage["tokenizer"]
    stage = TrainTokenizer(settings, config.model.max_position_embeddings, config.model.vocab_size)
    tokenizer = stage.run(TokenizerInputs(text), runtime("tokenizer")).tokenizer
    return Tokenize().run(TokenizeInputs(text, tokenizer), runtime("shards")).shards.path


def train(config: RunConfig, shards: Path, steps: int, gamma: float) -> tuple[npt.NDArray[Any], list[float]]:
    """Loads [steps, L, E] and losses of a pretraining run."""
    stage = config.stage["pretrain"]
    schedule = LrSchedule(lr=stage.engine.schedule.lr, warmup_steps=stage.engine.schedule.warmup_steps)
    engine = replace(stage.engine, bias_update_speed=gamma, balance_alpha=0.0, schedule=schedule)
    trainer = Trainer(build_model(config.model, config.seed), engine, StreamLm())
    rows = TokenRows(shards, "train", stage.row_tokens, config.seed)
    loads, losses = [], []
    for step in range(steps):
        result = trainer.step(torch.from_numpy(rows.batch(step, stage.rows_per_step)))
        loads.append(result.expert_load_LE)
        losses.append(result.metrics["loss"])
    return np.stack(loads), losses


def imbalance(load_NLE: npt.NDArray[Any], window: int) -> npt.NDArray[Any]:
    """max / mean tokens per expert of each MoE layer over windows of so many steps: [windows, L]."""
    n = len(load_NLE) // window
    summed = load_NLE[: n * window].reshape(n, window, *load_NLE.shape[1:]).sum(1)
    ratio: npt.NDArray[Any] = summed.max(-1) / summed.mean(-1)
    return ratio


def chart(curves: dict[str, npt.NDArray[Any]], window: int, path: Path) -> None:
    """Write the worst layer's curve of each run, and the goal, as one SVG."""
    steps = [window * (index + 1) for index in range(len(next(iter(curves.values()))))]
    series = [Series(name, steps, ratio_NL.max(-1).tolist()) for name, ratio_NL in curves.items()]
    series.append(Series("goal: below 1.5", steps, [1.5] * len(steps)))
    figure = line_chart("max / mean tokens per expert, worst layer", series, zero=False, smooth=False)
    drawing = re.sub(r' data-chart="[^"]*"', ' xmlns="http://www.w3.org/2000/svg"', figure)
    drawing = drawing[drawing.index("<svg") : drawing.index("</svg>")]
    for index, (entry, colour) in enumerate(zip(series, COLOURS, strict=False)):
        drawing = drawing.replace(f"var(--s{index})", colour)
        drawing += f'<text x="{WIDTH - 150}" y="{24 + 15 * index}" fill="{colour}">{entry.name}</text>'
    line = ".line{fill:none;stroke:currentColor;stroke-width:1.5}"
    style = f"<style>text{{font:11px sans-serif}}.grid{{stroke:#ddd}}{line}</style>"
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    start = drawing.index(">") + 1
    path.write_text(drawing[:start] + style + background + drawing[start:] + "</svg>\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; `framework bench balance`."""
    parser = argparse.ArgumentParser(prog="framework bench balance", description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--window", type=int, default=10, help="steps whose tokens are counted together")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.0, 1e-3, 1e-2])
    parser.add_argument("--documents", type=int, default=12_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    config = compose(["job=r1_zero", f"data.documents={arguments.documents}"])
    rows, curves, drawn = [], dict[str, Any](), dict[str, npt.NDArray[Any]]()
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(config, Path(folder))
        for gamma in arguments.gammas:
            load_NLE, losses = train(config, shards, arguments.steps, gamma)
            by_step, by_window = imbalance(load_NLE, 1), imbalance(load_NLE, arguments.window)
            drawn[f"gamma = {gamma:g}"] = by_window
            last = by_window[-5:]
            rows.append(
                {
                    "gamma": gamma,
                    "mean of layers": float(last.mean()),
                    "worst layer": float(last.max(-1).mean()),
                    "worst layer and window": float(last.max()),
                    "one step, worst layer": float(by_step[-5 * arguments.window :].max()),
                    "loss": float(np.mean(losses[-5 * arguments.window :])),
                }
            )
            names = {"step": by_step, "window": by_window}
            curves[f"{gamma:g}"] = {
                f"{name}, {kind}": np.round(reduce(-1), 4).tolist()
                for name, ratio_NL in names.items()
                for kind, reduce in (("mean of layers", ratio_NL.mean), ("worst layer", ratio_NL.max))
            }
    stage = config.stage["pretrain"]
    tokens = stage.rows_per_step * stage.row_tokens
    notes = {
        "tokens of a step": tokens,
        "tokens of a window": tokens * arguments.window,
        "columns": "max / mean tokens per expert in the last 5 windows; loss: mean of their steps, in nats",
    }
    path = report("balance", rows, notes)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"curves": curves}) + "\n")
    chart(drawn, arguments.window, Path(__file__).parents[2] / "docs" / "balance.svg")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
