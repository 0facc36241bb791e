"""wandb, offline: what the run's file holds, one identity across processes, and refusals before anything starts."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from framework.errors import UserError
from framework.observe.metrics import read_history
from framework.observe.tracking import RunTracking
from framework.observe.wandb_sink import TrackingConfig, check_tracking, heat_map_image

REPOSITORY = Path(__file__).parents[3]
PROCESS = """
import sys
from pathlib import Path
import numpy as np
from framework.observe.tracking import RunTracking
from framework.observe.wandb_sink import TrackingConfig
from framework.types import SampleRow

first, last = map(int, sys.argv[2:4])
tracking = RunTracking(TrackingConfig(heat_map_every=2), Path(sys.argv[1]), {"seed": 0})
for stage in ("pretrain", "grpo"):
    tracker = tracking.tracker(stage)
    for step in range(first, last):
        tracker.log(step, {"train/loss": float(step)})
        tracker.samples(step, [SampleRow("prompt", "answer", 1.0, {"accuracy": 1.0})])
        tracker.expert_load(step, np.ones((2, 4)))
if sys.argv[4] == "close":
    from tests.fake_clients import make_loop

    make_loop(Path(sys.argv[1]) / "state", samples_every=3, tracker=tracking.tracker("rl")).run()
    tracker = tracking.tracker("sparse")
    for step in (3, 6, 9):
        tracker.expert_load(step, np.ones((2, 4)))
    tracking.close()
"""


def records(run_file: Path) -> Iterator[bytes]:
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    content, place, parts = run_file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place < len(content):
        left = -place % 32768 or 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last part
            yield parts
            parts = b""


def history(run_file: Path) -> list[dict[str, Any]]:
    """Rows of an offline run's file, as `wandb sync` would upload them."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for content in records(run_file):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            rows.append(items | {"_step": record.history.step.num})
    return rows


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process began and left without closing, and a second one finished."""
    run_dir = tmp_path_factory.mktemp("run")
    for arguments in (("0", "3", "leave"), ("3", "5", "close")):
        subprocess.run(
            [sys.executable, "-c", PROCESS, str(run_dir), *arguments],
            check=True,
            timeout=60,
            cwd=REPOSITORY,
            env=os.environ | {"HOME": str(run_dir)},
        )
    return run_dir


def test_both_processes_write_the_same_wandb_run(run_dir: Path) -> None:
    identity = json.loads((run_dir / "wandb" / "identity.json").read_text())
    folders = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.name.endswith(identity["id"]) for folder in folders)


def test_each_stage_has_its_own_steps_and_rows_go_on_after_a_resume(run_dir: Path) -> None:
    files = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    first, second = (history(file) for file in files)
    for stage in ("pretrain", "grpo"):
        for rows, steps in ((first, [0, 1, 2]), (second, [3, 4])):
            losses = [
                (row[f"{stage}/step"], row[f"{stage}/train/loss"]) for row in rows if f"{stage}/train/loss" in row
            ]
            assert losses == [(step, float(step)) for step in steps]
    assert max(row["_step"] for row in first) < min(row["_step"] for row in second)


@pytest.mark.parametrize(
    ("stage", "kind", "steps"),
    [
        ("grpo", "samples", [0, 1, 2, 3, 4]),
        ("grpo", "experts/load", [0, 2, 4]),
        ("sparse", "experts/load", [6, 9]),  # three steps a batch: no multiple of 2 before the second
        ("rl", "samples", [2, 8, 14, 20]),  # each third batch of two steps
    ],
)
def test_every_table_arrives_and_a_heat_map_each_n_steps(
    run_dir: Path, stage: str, kind: str, steps: list[int]
) -> None:
    rows = [row for file in (run_dir / "wandb").glob("offline-run-*/*.wandb") for row in history(file)]
    names = {key for row in rows for key in row if key.startswith(f"{stage}/{kind}")}
    assert sorted({row[f"{stage}/step"] for row in rows if names & row.keys()}) == steps
    if kind == "samples":
        assert len(list(run_dir.glob(f"wandb/offline-run-*/files/media/table/{stage}/samples_*.table.json"))) == len(
            steps
        )


def test_the_runs_own_files_hold_the_same(run_dir: Path) -> None:
    stages = read_history(run_dir).stages
    assert stages["grpo"].series["train/loss"] == {step: float(step) for step in range(5)}
    assert [stage.state for stage in stages.values()] == ["finished"] * 4


def test_online_without_a_key_is_refused_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        RunTracking(TrackingConfig(mode="online"), tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_intervals_must_be_positive() -> None:
    with pytest.raises(UserError, match=r"TrackingConfig\.heat_map_every"):
        check_tracking(TrackingConfig(heat_map_every=0))


def test_none_writes_only_the_runs_own_files(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from framework.observe.tracking import RunTracking; from framework.observe.wandb_sink import TrackingConfig\n"
        "with RunTracking(TrackingConfig(mode='none'), Path(sys.argv[1]), {}) as tracking:\n"
        "    tracking.tracker('grpo').log(1, {'loss': 1.0})\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_heat_map_image() -> None:
    image = heat_map_image(np.array([[0.0, 2.0, 4.0], [0.0, 0.0, 0.0]]), cell=2)
    assert image.shape == (4, 6, 3)
    assert image[0, ::2].tolist() == [[38, 110, 200], [255, 255, 255], [200, 50, 47]]
    assert image[2, 0].tolist() == [128, 128, 128]


def test_every_tracking_file_builds_its_config() -> None:
    found = {}
    for file in sorted((REPOSITORY / "conf" / "tracking").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        assert values.pop("_target_") == "framework.observe.wandb_sink.TrackingConfig"
        found[file.stem] = TrackingConfig(**values).mode
    assert found == {"none": "none", "wandb_offline": "offline", "wandb_online": "online"}
