"""A row of the table of transformers through the graph on Ray: its matrices cut over two ranks, then assessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from framework.config import build_graph, compose
from framework.graph.runner import Runner
from framework.graph.store import Store
from framework.observe.collect import collect
from framework.observe.metrics import Tracker
from framework.observe.report import render

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_node")]
SETTINGS = (
    "job=transformers", "until=assess_megatron", "data.generated=400", "stage.gpt2_bpe.vocab_size=320",
    "stage.megatron.steps=30", "stage.megatron.engine.schedule.total_steps=30", "stage.megatron.model.hidden_size=32",
    "stage.megatron.model.intermediate_size=64", "stage.megatron.engine.schedule.warmup_steps=2",
    "stage.megatron.validate_every=30", "stage.megatron.checkpoint_every=20", "stage.assess.seeds=1",
    "stage.assess.tuning.texts=16", "stage.assess.tuning.heldout=16", "stage.assess.tuning.epochs=1",
)  # fmt: skip


def test_a_row_is_trained_over_two_ranks_exported_and_assessed(tmp_path: Path) -> None:
    config = compose([*SETTINGS, f"runs_dir={tmp_path}"])
    place = config.run_dir
    made = Runner(build_graph(config), Store(place), config.cluster, tracker_of=lambda node: Tracker(place, node)).run()
    run = collect(place)
    (found,) = run.assessments
    losses = list(run.history.stages["megatron"].series["train/loss"].values())
    assert losses[-1] < losses[0]
    validation = run.history.stages["megatron"].series["validation/loss"][30]
    assert found.held_out["loss"] == pytest.approx(validation, abs=1e-5)  # of the whole model, from its export
    assert (len(found.tuned), len(found.fresh), list(found.written)) == (1, 1, ["<|endoftext|>"])
    assert json.loads((made["megatron"].base.path / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    assert "Transformers side by side" in render(replace(run))
