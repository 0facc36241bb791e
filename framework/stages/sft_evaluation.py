"""Evaluation in the middle of fine-tuning: held-out prompts are asked, and their answers scored, every N steps.

    train to step N, 2N, …, the last        the ranks end there, which makes room for samplers on the same machines
    ask the model of that step              as `stage.evaluate` says; a killed evaluation goes on where it was
    give on the last model, or the best     by the numbers' first: pass@1

<work_dir>/evaluated/step_NNNNNN/       the model of that step: the best's and the newest's stay
           evaluated/step_NNNNNN.jsonl  its answers
           evaluated/scores.json        step -> the first of its numbers
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from framework.files import clear_way, write_atomically
from framework.graph.exports import export_name
from framework.graph.nodes import Runtime
from framework.protocols import Tracker
from framework.roles.reward import check_scores
from framework.stages.evaluate import EvaluateConfig
from framework.stages.held_out import HeldOutNumbers
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import Sampling
from framework.types import Prompt, SampleRow

logger = logging.getLogger("framework")


@dataclass(frozen=True)
class EvaluatedTraining:
    """`run` trains in stretches and gives a model on; called again after a kill it goes on where it was."""

    every: int  # steps between two evaluations; the last step has one as well
    config: EvaluateConfig
    prompts: Sequence[Prompt]
    export: Literal["last", "best"]

    def run(self, steps: int, runtime: Runtime, train: Callable[[int, Path, Runtime], Any], out: Path) -> None:
        """Train `steps` in all: `train(until, directory, runtime)` leaves the model after `until` in `directory`."""
        directory = runtime.work_dir / "evaluated"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "scores.json"
        scores: dict[int, float] = {}
        if file.is_file():
            scores = {int(step): score for step, score in json.loads(file.read_text()).items()}
        for until in [*range(self.every, steps, self.every), steps]:
            model = directory / export_name(until)
            if until in scores:
                continue
            if not model.is_dir():
                building = model.with_name(f".{model.name}")
                clear_way(building)
                train(until, building, replace(runtime, tracker=_Within(runtime.tracker, steps)))
                building.rename(model)
            asking = replace(runtime, tracker=_Within(runtime.tracker, steps, until))
            scores[until] = self._ask(model, until, asking)
            write_atomically(file, json.dumps(scores))
            for old in set(scores) - {until, _best(scores)}:
                clear_way(directory / export_name(old))
        chosen = _best(scores) if self.export == "best" else steps
        if self.export == "best":
            logger.info("the model of step %d is given on: the best, %.3f", chosen, scores[chosen])
        shutil.copytree(directory / export_name(chosen), out, dirs_exist_ok=True)

    def _ask(self, model: Path, step: int, runtime: Runtime) -> float:
        sampling = Sampling(self.config.sampling(), self.config.engine, self.config.reward)
        with SampleFile(model.with_suffix(".jsonl")) as kept:
            scored = [group.scored for group in sampling.run(model, self.prompts, runtime, kept)]
        check_scores(scored, self.config.reward.max_failed_share)
        numbers = HeldOutNumbers(self.config.right_by, self.config.format)(scored)
        runtime.tracker.log(step, numbers)
        name, score = next(iter(numbers.items()), ("no verdict", math.nan))
        logger.info("step %d: %s %.3f on %d held-out prompts", step, name.rpartition("/")[2], score, len(scored))
        return score


def _best(scores: dict[int, float]) -> int:
    """The step of the highest score, of equal ones the first; what has no verdict is below all."""
    return max(sorted(scores), key=lambda step: -math.inf if math.isnan(scores[step]) else scores[step])


@dataclass(frozen=True)
class _Within:
    """The stage's tracker, to which a stretch of its steps, or the evaluation at a step, is part of all its steps."""

    tracker: Tracker
    steps: int
    asked_at: int | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracker.log(step, metrics)

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        self.tracker.samples(step, rows)

    def expert_load(self, step: int, load_LE: npt.NDArray[np.float64]) -> None:
        self.tracker.expert_load(step, load_LE)

    def rewind(self, step: int) -> None:
        self.tracker.rewind(step)

    def progress(self, done: int, total: int, text: str = "") -> None:
        if self.asked_at is None:
            self.tracker.progress(done, self.steps, text)
        else:
            self.tracker.progress(self.asked_at, self.steps, f"evaluating: {done} of {total}, {text}")
