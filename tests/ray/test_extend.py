"""Context extension as a stage: the base's weights, trained on longer rows under YaRN, and exported as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from framework.artifacts import Checkpoint, TokenizerDir, TokenShards
from framework.data.shards import TokenRows, write_shards
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.trainer import Trainer
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.models.spec import build_model
from framework.objectives.lm import StreamLm
from framework.observe.metrics import Tracker, read_history
from framework.stages.extend import ExtendInputs, before_extension, extensions
from framework.stages.pretrain import ContextPhase, PretrainConfig
from jobs.bench._checkpoints import save_tokenizer
from tests.distributed import run_ranks
from tests.learners import TINY_V3, VOCAB
from tests.ray.test_supervised_loop import weights

pytestmark = pytest.mark.slow
LONG = replace(TINY_V3, rope_factor=4.0, original_max_position_embeddings=32, max_position_embeddings=128)
PRETRAIN = PretrainConfig(
    steps=10,
    row_tokens=32,
    engine=DeepSpeedConfig(token_budget=128, threads=1),
    extend=(ContextPhase(steps=10, rows_per_step=4, row_tokens=128, lr=1e-3, save_every=10),),
    validation_rows=1,
    workers=2,
)
PHASE, SEED = extensions(LONG, PRETRAIN)["extend_128"], 3


def train_directly(directory: Path) -> dict[str, np.ndarray]:
    """The same training in one process without Ray, from a model built under YaRN at once."""
    trainer = Trainer(build_model(LONG, seed=0), PHASE.config.engine, StreamLm())
    rows = TokenRows(directory / "shards", "train", 128, SEED)
    for step in range(PHASE.config.steps):
        trainer.step(torch.from_numpy(rows.batch(step * 4, 4)))
    trainer.export(directory / "direct")
    return weights(directory / "direct")


def test_an_extended_base_is_what_training_under_yarn_makes_of_it(ray_node: None, tmp_path: Path) -> None:
    for name in ("base", "shards", "tokenizer", "work"):
        (tmp_path / name).mkdir()
    build_model(before_extension(LONG, PRETRAIN), seed=0).save_pretrained(tmp_path / "base")
    save_tokenizer(tmp_path / "tokenizer")
    draw = np.random.default_rng(0)
    documents = [draw.integers(3, VOCAB, 700).tolist() for _ in range(9)]
    write_shards(tmp_path / "shards", {"train": documents[1:], "validation": documents[:1]}, VOCAB)
    inputs = ExtendInputs(
        TokenShards(tmp_path / "shards"), TokenizerDir(tmp_path / "tokenizer"), Checkpoint(tmp_path / "base")
    )
    cluster = ClusterConfig(learner_workers=2, learner_cpus=0.5)
    with Tracker(tmp_path / "metrics", "extend") as tracker:
        runtime = Runtime("extend", tmp_path / "work", tmp_path / "out", SEED, cluster, tracker, lambda: False)
        base = PHASE.run(inputs, runtime).base
    config = json.loads((base.path / "config.json").read_text())
    assert (config["rope_parameters"]["factor"], config["max_position_embeddings"]) == (4.0, 128)
    assert (base.path / "tokenizer.json").is_file()
    found, expected, start = weights(base.path), run_ranks(train_directly, 1, tmp_path)[0], weights(tmp_path / "base")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert np.linalg.norm(tensor - expected[name]) <= 1e-5 * np.linalg.norm(expected[name]), name
    name = "model.layers.0.self_attn.o_proj.weight"
    assert np.linalg.norm(found[name] - start[name]) > 1e-3 * np.linalg.norm(start[name])
    assert set(read_history(tmp_path / "metrics").stages["extend"].series["train/lr"].values()) == {1e-3}
