"""The `framework run` command as a process that tests watch and kill, and the small run that they share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
CONF = Path(__file__).parent / "conf"
N_PROMPTS = 12
# The shipped laptop configuration, cut to seconds of work.
SMALL = (
    "plugins=[tests.e2e]",
    "reward.components.format._target_=tests.e2e.parts.EvenText",
    "data.documents=400",
    "data.validation_documents=40",
    f"data.train_prompts={N_PROMPTS}",
    "data.heldout_prompts=4",
    "stage.pretrain.steps=20",
    "stage.pretrain.validation_rows=4",
    "stage.grpo.steps=12",
    "stage.grpo.minibatches_per_rollout=2",
    "stage.grpo.prompts_per_step=2",
    "stage.grpo.group_size=4",
    "stage.grpo.max_tokens=16",
    "stage.grpo.checkpoint_every=1",
    "stage.evaluate.k=2",
    "stage.evaluate.max_tokens=16",
)


@dataclass
class Run:
    """`framework run run=<name>` under `runs_dir`, started again by `start` as a user would: the same command."""

    runs_dir: Path
    name: str
    overrides: tuple[str, ...]
    ray_dir: Path  # short: Ray's sockets lie below it
    process: subprocess.Popen[bytes] | None = None
    seen: dict[int, psutil.Process] = field(default_factory=dict)  # every process of the run, for the clean-up

    @property
    def directory(self) -> Path:
        return self.runs_dir / self.name

    @property
    def output(self) -> str:
        """What the newest process has written so far."""
        return (self.runs_dir / f"{self.name}.out").read_text(errors="replace")

    def start(self) -> None:
        command = [sys.executable, "-m", "framework.cli", "run", f"run={self.name}", f"runs_dir={self.runs_dir}"]
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "WANDB_API_KEY")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(self.ray_dir)}
        with (self.runs_dir / f"{self.name}.out").open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *self.overrides, "--config-dir", str(CONF)],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Return the exit code."""
        assert self.process is not None
        while self.process.poll() is None:
            self.processes()
            time.sleep(0.2)
        return self.process.returncode

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something to become true while the run goes on; fails with its output if it ends before."""
        assert self.process is not None
        while not reached():
            assert self.process.poll() is None, f"the run ended before: {self.output[-3000:]}"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """The driver's descendants: Ray's own processes and all actors."""
        assert self.process is not None
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self.seen |= {process.pid: process for process in found}
        return found

    def actor(self, role: str) -> psutil.Process:
        """The process of the run's only actor of a class; Ray titles it ray::Class or ray::Class.method."""
        found = []
        for process in self.processes():
            try:
                title = process.cmdline()[:1]
            except psutil.NoSuchProcess:
                continue
            if title and title[0].split(".")[0] == f"ray::{role}":
                found.append(process)
        assert len(found) == 1, f"{len(found)} processes of {role}"
        return found[0]

    def close(self) -> None:
        """Kill what the run has left; Ray ends its processes by itself when it is given the time."""
        self.processes()
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(list(self.seen.values()), timeout=20)
        for process in left:
            if process.is_running():  # compares start times: never a stranger with a reused number
                process.kill()

    def batches_trained(self) -> int:
        """Batches in GRPO's newest checkpoint, 0 before there is one."""
        pointers = list(self.directory.glob("state/grpo-*/LATEST"))
        return int(pointers[0].read_text().split("_")[1]) if pointers else 0

    def ledger(self, node: str = "grpo") -> list[dict[str, Any]]:
        """Consumed tickets of GRPO's newest checkpoint."""
        (pointer,) = self.directory.glob(f"state/{node}-*/LATEST")
        lines = (pointer.parent / pointer.read_text() / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[1:]]

    def assert_each_prompt_was_trained_once_an_epoch(self, epochs: int) -> None:
        entries = self.ledger()
        assert {entry["outcome"] for entry in entries} == {"trained"}
        times = Counter((entry["epoch"], entry["prompt_id"]) for entry in entries)
        assert set(times.values()) == {1}
        assert len({prompt for _, prompt in times}) == N_PROMPTS
        assert len(times) == N_PROMPTS * epochs

    def artifact(self, node: str, output: str) -> Path:
        """Directory of a node's finished output."""
        (directory,) = self.directory.glob(f"artifacts/{node}-*/{output}")
        return directory

    def metrics(self, stage: str) -> dict[str, dict[int, float]]:
        """Name -> step -> value, as the report reads them."""
        from framework.observe.metrics import read_history

        history = read_history(self.directory)
        return {name: dict(values) for name, values in history.stages[stage].series.items()}
