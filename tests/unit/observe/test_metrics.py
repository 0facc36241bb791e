"""Metrics survive kills, resumes and values that are not numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from framework.errors import UserError
from framework.observe import metrics
from framework.observe.metrics import EXPERT_LOAD, METRICS, SAMPLES, Load, Tracker, read_history
from framework.types import SampleRow

ROW = SampleRow("q <b>", "a\n\u2028é", 1.5, {"accuracy": 1.0, "format": 0.5}, -0.25, 7, "stop", 3)


class RecordingSink:
    """Remembers what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(("log", stage, step, dict(metrics)))

    def samples(self, stage: str, step: int, rows: Sequence[SampleRow]) -> None:
        self.calls.append(("samples", stage, step, tuple(rows)))

    def expert_load(self, stage: str, step: int, load_LE: Load) -> None:
        self.calls.append(("expert_load", stage, step, load_LE.tolist()))

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        self.calls.append(("progress", stage, done, total, text))

    def close(self, stage: str) -> None:
        self.calls.append(("close", stage))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run", "grpo") as tracker:
        tracker.log(2, {"reward/mean": 0.5})
        tracker.log(1, {"reward/mean": 0.25})
        tracker.log(2, {"train/lr": 1e-5})
        tracker.samples(2, [ROW])
        tracker.expert_load(2, np.array([[1, 3], [2, 2], [0, 0]]))
    stage = read_history(tmp_path / "run").stages["grpo"]
    ratios = {"experts/layer_0": {2: 1.5}, "experts/layer_1": {2: 1.0}, "experts/layer_2": {2: 0.0}}
    assert stage.series == {"reward/mean": {1: 0.25, 2: 0.5}, "train/lr": {2: 1e-5}} | ratios
    assert list(stage.series["reward/mean"]) == [1, 2]
    assert stage.samples == {2: (ROW,)}
    np.testing.assert_array_equal(stage.expert_load[2], [[1.0, 3.0], [2.0, 2.0], [0.0, 0.0]])
    assert (stage.state, stage.last_step, stage.starts) == ("finished", 2, 1)
    assert stage.machine["cores"]


def test_values_that_are_not_numbers_are_kept_in_strict_json(tmp_path: Path) -> None:
    with Tracker(tmp_path, "grpo") as tracker:
        tracker.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
        tracker.samples(1, [SampleRow("q", "a", math.nan, {"accuracy": math.inf})])
        tracker.expert_load(1, np.array([[math.nan, 1.0]]))
    for name in (METRICS, SAMPLES, EXPERT_LOAD):
        for line in (tmp_path / name).read_text().splitlines():
            json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    stage = read_history(tmp_path).stages["grpo"]
    assert math.isnan(stage.series["a"][1])
    assert (stage.series["b"][1], stage.series["c"][1]) == (math.inf, -math.inf)
    row = stage.samples[1][0]
    assert math.isnan(row.reward)
    assert row.components["accuracy"] == math.inf
    assert math.isnan(stage.expert_load[1][0, 0])


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    Tracker(tmp_path, "grpo").log(1, {"loss": 1.0})
    with (tmp_path / METRICS).open("a") as handle:
        handle.write('{"stage": "grpo", "time": 1, "step": 2, "metr')
    Tracker(tmp_path, "grpo").log(3, {"loss": 3.0})
    history = read_history(tmp_path)
    assert history.stages["grpo"].series["loss"] == {1: 1.0, 3: 3.0}
    assert history.torn_lines == 1
    assert history.stages["grpo"].starts == 2


def test_a_killed_process_loses_nothing_it_had_logged(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from framework.observe.metrics import Tracker\n"
        "tracker = Tracker(Path(sys.argv[1]), 'grpo')\n"
        "for step in range(10**9):\n"
        "    tracker.log(step, {'loss': float(step)}); print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 20:
        pass
    os.kill(process.pid, signal.SIGKILL)
    seen = [int(line) for line in process.stdout.read().split("\n") if line]
    process.wait()
    stage = read_history(tmp_path).stages["grpo"]
    assert stage.series["loss"].keys() >= set(range(max([20, *seen]) + 1))
    assert stage.state == "unfinished"


def test_rewind_withdraws_later_steps_of_this_stage_only(tmp_path: Path) -> None:
    with Tracker(tmp_path, "pretrain") as tracker:
        tracker.log(9, {"loss": 9.0})
    tracker = Tracker(tmp_path, "grpo")
    for step in (1, 2, 3):
        tracker.log(step, {"loss": float(step)})
        tracker.samples(step, [ROW])
        tracker.expert_load(step, np.ones((1, 2)))
    resumed = Tracker(tmp_path, "grpo")
    resumed.rewind(1)
    resumed.log(2, {"loss": 20.0})
    stages = read_history(tmp_path).stages
    assert stages["grpo"].series["loss"] == {1: 1.0, 2: 20.0}
    assert list(stages["grpo"].samples) == list(stages["grpo"].expert_load) == [1]
    assert stages["pretrain"].series["loss"] == {9: 9.0}


def test_a_repeated_step_keeps_its_last_value(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        Tracker(tmp_path, "grpo").log(5, {"loss": value})
    assert read_history(tmp_path).stages["grpo"].series["loss"] == {5: 2.0}


def test_time_leaves_out_the_pause_before_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "time", lambda: now[0])
    first = Tracker(tmp_path, "grpo")
    now[0] = 110.0
    first.log(1, {"loss": 1.0})
    first.close(finished=False)
    assert read_history(tmp_path).stages["grpo"].state == "stopped"
    now[0] = 500.0
    second = Tracker(tmp_path, "grpo")
    now[0] = 505.0
    second.close()
    stage = read_history(tmp_path).stages["grpo"]
    assert (stage.seconds, stage.first_time, stage.last_time, stage.state) == (15.0, 100.0, 505.0, "finished")


def test_an_error_leaves_the_stage_stopped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Tracker(tmp_path, "grpo"):
        1 / 0  # noqa: B018
    assert read_history(tmp_path).stages["grpo"].state == "stopped"


def test_sinks_and_display_get_everything(tmp_path: Path) -> None:
    sink, display = RecordingSink(), RecordingSink()
    with Tracker(tmp_path, "grpo", [sink], display) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.samples(1, [ROW])
        tracker.expert_load(1, np.array([[1, 3]]))
        tracker.progress(1, 2, "reward 0.5")
    assert sink.calls == [
        ("log", "grpo", 1, {"loss": 1.0}),
        ("samples", "grpo", 1, (ROW,)),
        ("expert_load", "grpo", 1, [[1.0, 3.0]]),
        ("log", "grpo", 1, {"experts/layer_0": 1.5}),
        ("close", "grpo"),
    ]
    assert display.calls == [("progress", "grpo", 1, 2, "reward 0.5"), ("close", "grpo")]


def test_an_unwritable_run_directory_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be writable"):
        Tracker(tmp_path / "file" / "run", "grpo")


def test_a_full_disk_is_the_users_error(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "grpo")
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        tracker.log(1, {"loss": 1.0})


def test_a_run_without_files_is_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path).stages == {}


def test_a_directory_that_was_moved_away_is_not_made_anew(tmp_path: Path) -> None:
    """What stood there then would be taken for something that is no run."""
    tracker = Tracker(tmp_path / "run", "grpo")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="run was moved or deleted while it was being worked on"):
        tracker.log(1, {"reward": 1.0})
    assert not (tmp_path / "run").exists()
