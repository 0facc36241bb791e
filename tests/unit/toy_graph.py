"""A graph of tiny stages for the tests of configuration, graph and command line."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts import Checkpoint, EvalReport, TextSet
from framework.errors import RunFailed, UserError
from framework.graph.nodes import Graph, Runtime


@dataclass(frozen=True)
class Nothing:
    pass


@dataclass(frozen=True)
class Texts:
    text: TextSet


@dataclass(frozen=True)
class Model:
    checkpoint: Checkpoint


@dataclass(frozen=True)
class TrainIn:
    corpus: TextSet
    base: Checkpoint | None = None


@dataclass(frozen=True)
class Report:
    report: EvalReport


@dataclass(frozen=True)
class Write:
    """Writes `lines` documents."""

    lines: int = 3
    word: str = "hello"
    source: Path | None = None  # a file that replaces `word`

    def __post_init__(self) -> None:
        if self.lines % 3:
            raise UserError("stage.write.lines", self.lines, "must be a multiple of 3")

    def run(self, inputs: Nothing, runtime: Runtime) -> Texts:
        directory = runtime.artifact_dir("text")
        rows = [json.dumps({"id": str(i), "text": self.word}) for i in range(self.lines)]
        (directory / "train-00000.jsonl").write_text("\n".join(rows) + "\n")
        return Texts(TextSet(directory))


@dataclass(frozen=True)
class Train:
    """Counts its calls in its work_dir, and stops or fails when told to."""

    lr: float = 1e-3
    fail: str = (
        ""  # at the first call: "stop", "killed" (with all of its group), "error", "full", "crash", "sleep", "unbuilt"
    )
    base: str = ""  # directory of a checkpoint; see build_on_base

    def run(self, inputs: TrainIn, runtime: Runtime) -> Model:
        calls = runtime.work_dir / "calls"
        done = int(calls.read_text()) if calls.exists() else 0
        calls.write_text(str(done + 1))
        if done == 0 and self.fail == "error":
            raise RunFailed("the toy stage failed")
        if done == 0 and self.fail == "full":
            raise OSError(28, "No space left on device", str(runtime.out_dir / "weights"))
        if done == 0 and self.fail == "sleep":
            time.sleep(60)
        if done == 0 and self.fail == "crash":
            raise ValueError("a bug\nover two lines")
        if done == 0 and self.fail in ("stop", "killed"):
            object.__getattribute__(runtime.should_stop, "set")()
        if done == 0 and self.fail == "unbuilt":  # as it ends, before it has built anything
            object.__getattribute__(runtime.should_stop, "set")()
            return Model(Checkpoint(runtime.out_dir / "checkpoint"))
        if done == 0 and self.fail == "killed":
            raise ConnectionError("raylet is gone\nwith a traceback")
        runtime.stop_if_asked()
        directory = runtime.artifact_dir("checkpoint")
        for name in Checkpoint.required:
            (directory / name).write_text(json.dumps({"lr": self.lr}))
        return Model(Checkpoint(directory))


@dataclass(frozen=True)
class Evaluate:
    def run(self, inputs: Model, runtime: Runtime) -> Report:
        directory = runtime.artifact_dir("report")
        (directory / "report.json").write_text("{}")
        return Report(EvalReport(directory))


def build(config: Any) -> Graph:
    """write -> train -> evaluate."""
    graph = Graph()
    write = graph.add("write", config.stage["write"])
    train = graph.add("train", config.stage["train"], corpus=write.out("text"))
    graph.add("evaluate", Evaluate(), checkpoint=train.out("checkpoint"))
    return graph


def build_miswired(config: Any) -> Graph:
    """Gives a text set where a checkpoint is wanted."""
    graph = Graph()
    write = graph.add("write", config.stage["write"])
    graph.add("train", config.stage["train"], corpus=write.out("text"), base=write.out("text"))
    return graph


def build_on_base(config: Any) -> Graph:
    """Starts from a checkpoint that exists already."""
    graph = Graph()
    text = graph.add("write", config.stage["write"]).out("text")
    train = config.stage["train"]
    graph.add("train", train, corpus=text, base=Checkpoint(Path(train.base)))
    return graph


def build_two_rl(config: Any) -> Graph:
    """Two stages of reinforcement learning in a row, on directories that stand for a base and its prompts."""
    from framework.artifacts import PromptSet
    from framework.stages.grpo import Grpo

    graph, prompts = Graph(), PromptSet(Path("prompts"))
    start = graph.add(
        "r1_zero", Grpo(config.stage["r1_zero"], config.model), base=Checkpoint(Path("base")), prompts=prompts
    )
    graph.add("dev2", Grpo(config.stage["dev2"], config.model), base=start.out("policy"), prompts=prompts)
    return graph
