"""One data-parallel rank of a supervised training, whatever its objective, as a Ray actor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from framework.actors.rank_group import Rank
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import UserError
from framework.graph.deadlines import Deadlines
from framework.graph.disk import disk_errors
from framework.models.families.base import ModelConfig
from framework.roles.supervised_data import Data
from framework.roles.supervised_milestones import Milestones
from framework.types import StepResult


@dataclass(frozen=True)
class SupervisedRun:
    """Everything a rank needs; paths are on storage that all ranks share."""

    model: ModelConfig | Path  # fresh weights of these sizes, or those of a Hugging Face checkpoint
    engine: DeepSpeedConfig
    data: Data
    out: Path  # the Hugging Face checkpoint
    work_dir: Path
    steps: int
    validate_every: int
    checkpoint_every: int
    seed: int
    workers: int = 1
    min_workers: int = 0  # elastic: as many workers as there is room for, from this number to `workers`; 0: always all
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    max_failures: int = 5  # restarts in a row without a new checkpoint between them
    deadlines: Deadlines = Deadlines()
    milestones: Milestones = Milestones()


@dataclass(frozen=True)
class Trained:
    """What some steps came to: 3 steps of 100 tokens that end at step 20 are Trained(StepResult(20, …), 300)."""

    last: StepResult
    tokens: float  # of all these steps


class TrainingWorker(Rank):
    """The rank. Calls are collective."""

    def start(self, rank: int, world: int, host: str, port: int, run: SupervisedRun) -> None:
        """Join the process group, open the data, build or load the model; raises UserError for what does not fit."""
        self.join(rank, world, host, port)
        self._run = run
        import torch

        from framework.engines.sharded_load import build_sharded, load_sharded
        from framework.engines.trainer import Trainer

        torch.set_num_threads(run.engine.threads or max(1, int(run.cpus_per_worker)))
        self._feed, engine = run.data.open(run.seed), run.engine
        if run.min_workers:  # experts and rows spread as far as this number of workers allows
            spread = math.gcd(engine.sp_size, world)
            engine = replace(engine, ep_size=math.gcd(engine.ep_size, world), sp_size=spread)
        if isinstance(run.model, ModelConfig):
            model = build_sharded(run.model, run.seed, engine)
        else:
            model = load_sharded(run.model, engine, run.seed if self._feed.objective.scalar_head else None)
        if self._feed.vocab_size > model.config.vocab_size:
            allowed = f"the tokenizer has {self._feed.vocab_size} tokens: it does not match this model"
            raise UserError("model.vocab_size", model.config.vocab_size, allowed)
        self._trainer = Trainer(model, engine, self._feed.objective)
        self._feed.begin(self._trainer, run.work_dir)

    def steps(self) -> int:
        """Optimizer steps taken."""
        return self._trainer.engine.steps

    def step(self, until: int) -> Trained:
        """Take at least one optimizer step, up to step `until`."""
        tokens = 0.0
        while True:
            last = self._trainer.step(self._feed.batch(self._trainer.engine.steps))
            tokens += last.metrics["tokens"]
            if last.step >= until:
                return Trained(last, tokens)

    def validate(self) -> dict[str, float]:
        """Loss and metrics on what is not trained on; empty if nothing was set apart."""
        if self._feed.held_out is None:
            return {}
        found = self._trainer.evaluate(self._feed.held_out)
        with disk_errors(self._run.work_dir):
            self._run.milestones.evaluated(self._run.work_dir, self._trainer, self.steps(), found["loss"])
        return found

    def export_on_the_way(self) -> None:
        """Leave a Hugging Face checkpoint of this step."""
        with disk_errors(self._run.work_dir):
            self._run.milestones.stepped(self._run.work_dir, self._trainer, self.steps())

    def choose(self) -> str:
        """Load the state that is given on; return what there is to say of it."""
        return self._run.milestones.finish(self._run.work_dir, self._trainer)

    def save(self, directory: Path) -> None:
        """Write engine state; raises UserError for a disk that is full or cannot be written."""
        with disk_errors(directory):
            self._trainer.save(directory)

    def load(self, directory: Path) -> None:
        """Restore engine state."""
        self._trainer.load(directory)

    def export(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint (rank 0); raises UserError as `save` does."""
        with disk_errors(directory):
            self._trainer.export(directory)
