"""Pretraining on a rank group: a killed worker costs time only, and the number of workers may change."""

from __future__ import annotations

import json
import logging
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch

from framework.data.shards import TokenRows, write_shards
from framework.engines.batch_schedule import BatchSchedule
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.errors import NotFinite, UserError
from framework.graph.deadlines import Deadlines
from framework.models.spec import build_model
from framework.objectives.lm import StreamLm
from framework.observe.metrics import Tracker, read_history
from framework.roles.supervised_data import RowData
from framework.roles.supervised_loop import SupervisedLoop
from framework.roles.training_worker import SupervisedRun
from tests.distributed import run_ranks
from tests.learners import TINY_V3, VOCAB

pytestmark = pytest.mark.slow
ENGINE = DeepSpeedConfig(
    schedule=LrSchedule(lr=1e-3, warmup_steps=5), token_budget=512, threads=1, bias_update_speed=1e-3, clip=0.5
)
FIRST, LAST, CHECKPOINT_EVERY, ROWS, SEED = 80, 110, 20, 6, 3


def run_of(directory: Path, steps: int, **changes: Any) -> SupervisedRun:
    values: dict[str, Any] = {
        "model": TINY_V3, "engine": ENGINE, "steps": steps, "out": directory / "out", "work_dir": directory / "work",
        "data": RowData(directory / "shards", BatchSchedule(ROWS, 128), validation_rows=1), "validate_every": 1000,
        "checkpoint_every": CHECKPOINT_EVERY, "seed": SEED, "workers": 2, "cpus_per_worker": 0.5,
    } | changes  # fmt: skip
    return SupervisedRun(**values)


def train_directly(directory: Path) -> list[dict[str, Any]]:
    """The same training on this gloo rank without Ray: losses by step, then the weights after FIRST and LAST."""
    run = run_of(directory, LAST)
    trainer = Trainer(build_model(TINY_V3, run.seed), run.engine, StreamLm())
    rows = TokenRows(directory / "shards", "train", 128, run.seed)
    losses, found = {}, []
    for step in range(LAST):
        losses[step + 1] = trainer.step(torch.from_numpy(rows.batch(step * ROWS, ROWS))).metrics["loss"]
        if step + 1 in (FIRST, LAST):
            trainer.export(directory / f"direct_{step + 1}")
            found.append(weights(directory / f"direct_{step + 1}"))
    return [losses, *found]


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    tensors: dict[str, np.ndarray] = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


class Written:
    """A tracker that remembers every loss it was told, also those that were withdrawn."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self.steps = tracker, list[int]()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.steps += [step] if "train/loss" in metrics else []
        self._tracker.log(step, metrics)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)


class Killer:
    """Kills one training worker ten steps after a checkpoint, and stops one ten steps after a later one."""

    def __init__(self, run: SupervisedRun, written: Written) -> None:
        self._run, self._written = run, written
        self._known = 0
        self.struck: list[int] = []

    def __call__(self) -> bool:
        latest = self._run.work_dir / "LATEST"
        newest = int(latest.read_text()[-6:]) if latest.is_file() else 0
        if len(self.struck) < 2 and newest > self._known and self._written.steps[-1] > newest:
            workers = [p for p in psutil.Process().children(recursive=True) if "TrainingWorker" in "".join(p.cmdline())]
            workers = [p for p in workers if p.pid not in self.struck]
            if workers:
                workers[-1].send_signal((signal.SIGKILL, signal.SIGSTOP)[len(self.struck)])
                self.struck.append(workers[-1].pid)
                self._known = newest
        return False


def test_a_killed_worker_and_another_number_of_workers_leave_no_trace(
    ray_node: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of which one worker is killed and one stopped ends with an undisturbed run's weights; one continues it."""
    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    (tmp_path / "shards").mkdir()
    generator = np.random.default_rng(0)
    documents = [(generator.integers(0, 40) + 3 * np.arange(400)) % VOCAB for _ in range(60)]
    write_shards(tmp_path / "shards", {"train": documents, "validation": documents[:2]}, VOCAB)  # type: ignore[arg-type]
    (tmp_path / "work").mkdir()
    losses, after_first, after_last = run_ranks(train_directly, 2, tmp_path)[0]

    run = run_of(tmp_path, FIRST, deadlines=Deadlines(silent=6))
    with Tracker(tmp_path / "metrics", "pretrain") as tracker:
        written = Written(tracker)
        killer = Killer(run, written)
        SupervisedLoop(run, cast(Any, written), killer).run()
    assert len(killer.struck) == 2, "no worker was killed or stopped: the run was too short"
    assert not psutil.pid_exists(killer.struck[1]), "a stopped worker is killed"
    assert re.search(r"training worker \d of 2 died: .*; restarting", caplog.text)
    assert re.search(r"training worker \d of 2 gave no sign of life", caplog.text)
    found = weights(run.out)
    assert found.keys() == after_first.keys()
    assert all(np.array_equal(found[name], after_first[name]) for name in found)
    assert len(written.steps) > len(set(written.steps)), "the restart repeated steps"
    assert written.steps.count(10) == 1, "and did not begin afresh"
    recorded = read_history(tmp_path / "metrics").stages["pretrain"].series["train/loss"]
    assert recorded == {step: losses[step] for step in range(10, FIRST + 1, 10)}

    resumed = run_of(tmp_path, LAST, workers=4, min_workers=1, cpus_per_worker=2.0)  # this node has room for one
    with Tracker(tmp_path / "metrics", "pretrain") as tracker:
        SupervisedLoop(resumed, tracker).run()
    saved = sorted(run.work_dir.glob("batch_*/learner/engine.json"))[-1]
    assert json.loads(saved.read_text())["topology"]["world"] == 1
    recorded = read_history(tmp_path / "metrics").stages["pretrain"].series["train/loss"]
    assert list(recorded) == list(range(10, LAST + 1, 10))
    for step, loss in recorded.items():
        assert loss == pytest.approx(losses[step], rel=1e-5)
    for name, tensor in weights(resumed.out).items():
        assert np.linalg.norm(tensor - after_last[name]) <= 1e-5 * np.linalg.norm(after_last[name]), name


def test_a_full_disk_ends_the_run_at_once_as_the_users_error(ray_node: None, tmp_path: Path) -> None:
    for name in ("shards", "out", "work"):
        (tmp_path / name).mkdir()
    documents = [np.arange(400) % VOCAB] * 10
    write_shards(tmp_path / "shards", {"train": documents, "validation": documents}, VOCAB)  # type: ignore[arg-type]
    (tmp_path / "out" / "config.json").symlink_to("/dev/full")
    run = run_of(tmp_path, 1, workers=1, max_failures=1000)  # more than there is time for
    with Tracker(tmp_path / "metrics", "pretrain") as tracker, pytest.raises(UserError, match="the disk is full"):
        SupervisedLoop(run, tracker).run()


def test_damage_costs_the_steps_since_the_checkpoint_before(
    ray_node: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("framework"), "propagate", True)
    for name in ("shards", "work"):
        (tmp_path / name).mkdir()
    documents = [np.arange(400) % VOCAB] * 10
    write_shards(tmp_path / "shards", {"train": documents, "validation": documents}, VOCAB)  # type: ignore[arg-type]
    work = tmp_path / "work"
    with Tracker(tmp_path / "metrics", "pretrain") as tracker:
        SupervisedLoop(run_of(tmp_path, 40, workers=1, checkpoint_every=10), tracker).run()
    older, newest = sorted(work.glob("batch_*/"))[-2:]
    state = next(newest.glob("learner/native/*optim_states.pt"))
    flipped = bytearray(state.read_bytes())
    flipped[5000:5064] = bytes(byte ^ 0x10 for byte in flipped[5000:5064])
    state.write_bytes(flipped)
    with Tracker(tmp_path / "metrics", "pretrain") as tracker:
        SupervisedLoop(run_of(tmp_path, 50, workers=1, checkpoint_every=10), tracker).run()
    assert caplog.text.count("is damaged") == 1
    assert state.name in caplog.text
    assert f"going on from {older.name}" in caplog.text
    assert list(read_history(tmp_path / "metrics").stages["pretrain"].series["train/loss"]) == [10, 20, 30, 40, 50]


def test_a_loss_that_is_not_finite_ends_the_run_at_once_and_the_checkpoint_stays(
    ray_node: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Starting again would only repeat it; the exit code is that of a failed run, with one line."""
    (tmp_path / "shards").mkdir()
    documents = [(start + 3 * np.arange(400)) % VOCAB for start in range(20)]
    write_shards(tmp_path / "shards", {"train": documents, "validation": documents[:2]}, VOCAB)  # type: ignore[arg-type]
    (tmp_path / "work").mkdir()
    good = run_of(tmp_path, CHECKPOINT_EVERY)
    with Tracker(tmp_path / "metrics", "pretrain") as tracker:
        SupervisedLoop(good, tracker).run()
    engine = replace(ENGINE, schedule=LrSchedule(lr=1e30))
    with (
        caplog.at_level(logging.WARNING, "framework"),
        Tracker(tmp_path / "metrics", "pretrain") as tracker,
        pytest.raises(NotFinite, match=r"^step 2[12], rank \d of 2: .* is not finite[^\n]*$") as raised,
    ):
        SupervisedLoop(run_of(tmp_path, 3 * CHECKPOINT_EVERY, engine=engine), tracker).run()
    assert raised.value.exit_code == 1
    assert "restarting" not in caplog.text
    states = good.work_dir.glob("batch_*/learner/engine.json")
    assert {json.loads(file.read_text())["counters"]["steps"] for file in states} == {CHECKPOINT_EVERY}
