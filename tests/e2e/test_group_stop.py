"""A signal to the whole process group, as a terminal and a batch system send it, in the middle of pretraining."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.runs import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 4000


def test_pretraining_stopped_with_its_process_group_loses_nothing(tmp_path: Path, ray_dir: Path) -> None:
    lines = (json.dumps({"text": f"{i} + {i % 7} = {i + i % 7}. " * 8}) for i in range(200))
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    run = Run(
        tmp_path,
        "group",
        ("job=pretrain", "model=v1_tiny", f"data.documents={tmp_path}/documents.jsonl", "tracking=none",
         "cluster.deadlines.stop=120", f"stage.pretrain.steps={STEPS}", "stage.pretrain.workers=1",
         "stage.pretrain.rows_per_step=2", "stage.pretrain.row_tokens=64", "stage.pretrain.validation_rows=2",
         f"stage.pretrain.validate_every={STEPS}", "stage.pretrain.checkpoint_every=10"),
        ray_dir,
    )  # fmt: skip
    try:
        run.start()
        run.until(lambda: written(run) != [])
        run.processes()
        assert run.process is not None
        os.killpg(run.process.pid, signal.SIGTERM)
        assert run.wait() == 130, run.output[-3000:]
        assert "the same command resumes" in run.output.splitlines()[-1]
    finally:
        run.close()
    states = run.directory.glob("state/pretrain-*/batch_*/learner/engine.json")
    saved = max(json.loads(file.read_text())["counters"]["steps"] for file in states)
    assert written(run)[-1] <= saved < STEPS, "the stop saved the step under way: nothing is trained a second time"


def written(run: Run) -> list[int]:
    """Steps of which the training workers have told."""
    file = run.directory / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0].splitlines() if file.is_file() else []
    records = [json.loads(line) for line in whole]
    return [r["step"] for r in records if r["stage"] == "pretrain" and "train/loss" in r.get("metrics", {})]
