"""The table of transformers in a run's report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from framework.artifacts import AssessmentReport
from framework.errors import UserError
from framework.observe.collect import collect
from framework.observe.metrics import Tracker
from framework.observe.report import render
from framework.observe.side_by_side import read_assessment
from framework.types import Assessed
from tests.unit.observe.synthetic import write_artifact


def test_models_stand_side_by_side(tmp_path: Path) -> None:
    for place, label in enumerate(("bert", "gpt2")):
        with Tracker(tmp_path, label) as tracker:
            for step in range(10, 60, 10):
                tracker.log(step, {"train/loss": 5.0 - step / 20, "train/tokens_per_s": 1000.0 * (place + 1)})
        held_out = {"loss": 2.5, "accuracy": 0.75, "perplexity": 7.5} | ({} if place else {"pair_accuracy": 0.9})
        found = Assessed(label, f"{label}_base", "masked", 711_298, held_out, (0.8, 0.9, 0.85), (0.5, 0.5, 0.5))
        write_artifact(
            tmp_path, f"assess_{label}", AssessmentReport, {"assessment.json": json.dumps(asdict(found))}, {}
        )
    run = collect(tmp_path)
    assert [each.label for each in run.assessments] == ["bert", "gpt2"]
    page = render(run)
    for text in ("Transformers side by side", "711,298", "2,000", "4.50 → 2.50", "75.0%", "90.0%", "7.5",
                 '85.0% <span class="se">±5.0</span>', "50.0%"):  # fmt: skip
        assert text in page, text
    assert "No evaluation has finished" not in page


def test_a_damaged_assessment_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "assessment.json"
    file.write_text("{}")
    with pytest.raises(UserError, match=r"must be an assessment\.json"):
        read_assessment(file)
