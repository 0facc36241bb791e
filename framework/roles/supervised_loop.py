"""Supervised training as a loop over one rank group: pretraining, fine-tuning, reward models.

    until the last step:
        step            a stretch of optimizer steps, as long as a stop should wait
        log, validate   where they are due; export on the way
        save            and, where workers are elastic, go on with more of them if there is room by now

A rank that is lost costs the steps since the newest checkpoint: the group is started again from it, where workers are
elastic with as many as find room.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from framework.actors.placing import check_room, room
from framework.actors.rank_group import RankGroup, RanksLost
from framework.engines.cpu.environment import actor_options
from framework.errors import RunFailed, Stopped
from framework.graph.stop import never_stop
from framework.protocols import Tracker
from framework.roles.training_worker import SupervisedRun, Trained, TrainingWorker
from framework.rotation import Checkpoints
from framework.types import StepResult

REPORT_EVERY = 10  # steps
STRETCH_S = 2.0  # of a call to the ranks: a stop waits for one
SETTLE_S = 3.0  # after a death, until Ray knows what room there is

logger = logging.getLogger("framework")


@dataclass
class SupervisedLoop:
    """`run` returns once the model is exported, and continues from the newest checkpoint in the work directory."""

    settings: SupervisedRun
    tracker: Tracker
    should_stop: Callable[[], bool] = never_stop
    allow_s: Callable[[float], None] = lambda seconds: None
    group: RankGroup | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)  # in a row, without a new checkpoint between them
    _step_s: float = field(default=STRETCH_S, init=False)  # as the last stretch took
    _since: float = field(default=0.0, init=False)  # when the tokens began to be counted
    _tokens: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Train to the end. Raises UserError or NotFinite at once, RunFailed after `max_failures` losses, Stopped."""
        check_room("training workers", self._least, self._asks)
        try:
            while True:
                newest = Checkpoints(self.settings.work_dir).newest()
                try:
                    self.group = self.new_group(self._room_for())
                    self.group = self._train(self.group)
                    if told := self.group.call("choose"):
                        logger.warning("%s", told)
                    return self.group.export(self.settings.out)
                except RanksLost as error:
                    again = Checkpoints(self.settings.work_dir).newest() == newest
                    self._failures = self._failures + 1 if again else 1
                    if self._failures > self.settings.max_failures:
                        raise RunFailed(f"{error}; {self.settings.max_failures} restarts used up") from error
                    logger.warning("%s; restarting from the newest checkpoint (%d)", error, self._failures)
        finally:
            if self.group is not None:
                self.group.shutdown()

    def new_group(self, ranks: int) -> RankGroup:
        """Return a group of so many ranks, not started yet."""
        settings = self.settings
        options = actor_options(settings.cpus_per_worker, settings.gpus_per_worker, settings.engine.threads)
        return RankGroup(
            "training worker", TrainingWorker, [options] * ranks, (settings,),
            deadlines=settings.deadlines, should_stop=self.should_stop, allow_s=self.allow_s,
        )  # fmt: skip

    def _train(self, group: RankGroup) -> RankGroup:
        """Train to the last step; return the group that got there."""
        settings, step = self.settings, self._resume(group)
        saved = step
        self._restart_clock()
        while step < settings.steps:
            if self.should_stop():
                if step > saved:
                    self._save(group, step)
                raise Stopped(f"stopped after {step} of {settings.steps} steps; the same command resumes")
            began, before = time.monotonic(), step
            trained: Trained = group.call("step", self._until(step))
            step = trained.last.step
            self._step_s, self._tokens = (time.monotonic() - began) / (step - before), self._tokens + trained.tokens
            if step % REPORT_EVERY == 0 or step == settings.steps:
                self._report(trained.last)
            if step % settings.validate_every == 0 or step == settings.steps:
                if found := group.call("validate"):
                    self.tracker.log(step, {f"validation/{name}": value for name, value in found.items()})
                self._restart_clock()
            if self._exports and step % self._exports == 0:
                group.call("export_on_the_way")
                self._restart_clock()
            if step % settings.checkpoint_every == 0:
                self._save(group, step)
                saved = step
                if self._grows(group) and step < settings.steps:
                    logger.info("there is room for more training workers: going on with more than %d", group.ranks)
                    group.shutdown()
                    group = self.group = self.new_group(self._room_for())
                    self._resume(group)
        return group

    def _until(self, step: int) -> int:
        """Where the next stretch ends: at the next event, or after about STRETCH_S."""
        every = (REPORT_EVERY, self.settings.validate_every, self.settings.checkpoint_every, self._exports)
        event = min(self.settings.steps, *((step // n + 1) * n for n in every if n))
        return min(event, step + max(1, int(STRETCH_S / self._step_s)))

    def _resume(self, group: RankGroup) -> int:
        """Start the ranks, from the newest checkpoint that is whole; return the steps that have been taken."""
        if not Checkpoints(self.settings.work_dir).restore(group.load):
            group.start()
            self.tracker.rewind(0)
            return 0
        step: int = group.call("steps")
        self.tracker.rewind(step)
        self.tracker.progress(step, self.settings.steps)
        return step

    def _save(self, group: RankGroup, step: int) -> None:
        Checkpoints(self.settings.work_dir).save(step, group.save)
        self._restart_clock()

    def _report(self, last: StepResult) -> None:
        metrics = {f"train/{name}": float(value) for name, value in last.metrics.items()}
        metrics["train/tokens_per_s"] = self._tokens / (time.monotonic() - self._since)
        if (load_LE := last.expert_load_LE) is not None:
            metrics["experts/max_over_mean"] = float(np.mean(load_LE.max(-1) / load_LE.mean(-1)))
            self.tracker.expert_load(last.step, load_LE)
        self.tracker.log(last.step, metrics)
        loss = f"loss {metrics['train/loss']:.3f}  " if "train/loss" in metrics else ""
        text = f"{loss}{metrics['train/tokens_per_s']:,.0f} tokens/s"
        self.tracker.progress(last.step, self.settings.steps, text)
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since, self._tokens = time.monotonic(), 0.0

    @property
    def _exports(self) -> int:
        """Steps between exports on the way, 0: none."""
        return self.settings.milestones.export_every

    @property
    def _least(self) -> int:
        return self.settings.min_workers or self.settings.workers

    @property
    def _asks(self) -> dict[str, float]:
        """What one rank books."""
        return {"CPU": self.settings.cpus_per_worker, "GPU": self.settings.gpus_per_worker}

    def _room_for(self) -> int:
        """Ranks to start: all, or of elastic ones as many as find room now."""
        if not self.settings.min_workers:
            return self.settings.workers
        began = time.monotonic()
        while (free := room(self._asks)) < self.settings.workers:
            waited = time.monotonic() - began
            if free >= self._least and waited > SETTLE_S:
                break
            if waited > self.settings.deadlines.place:
                asked = f"{self._least} training workers, {self._asks['CPU']:g} CPUs each"
                raise RunFailed(f"{asked}, found no place for {waited:.0f} s: there is room for {free}")
            if self.should_stop():
                raise Stopped("stopped before there was room for the workers; the same command resumes")
            time.sleep(0.3)
        return min(free, self.settings.workers)

    def _grows(self, group: RankGroup) -> bool:
        """Whether an elastic run could go on with more ranks."""
        return self.settings.min_workers > 0 and group.ranks < self.settings.workers and room(self._asks) > 0
