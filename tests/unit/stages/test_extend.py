"""Context extension: which phases follow pretraining, and the checkpoint that each starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.config import build_graph, compose
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule, StepwiseValue
from framework.errors import UserError
from framework.models.families.base import ModelConfig
from framework.models.spec import build_model
from framework.stages.extend import before_extension, extensions, stretched
from framework.stages.pretrain import ContextPhase, PretrainConfig
from tests.learners import TINY_V3

LONG = replace(TINY_V3, rope_factor=4.0, original_max_position_embeddings=32, max_position_embeddings=128)
PHASES = (ContextPhase(5, 4, 64, 1e-4), ContextPhase(6, 2, 128, 1e-5, save_every=3))
PRETRAIN = PretrainConfig(
    steps=100,
    row_tokens=32,
    engine=DeepSpeedConfig(
        schedule=LrSchedule(2e-3, "cosine", 5, 100),
        bias_update_speed=StepwiseValue((0.001, 0.0), (90,)),
        mtp_coef=StepwiseValue((0.3, 0.1), (60,)),
    ),
    extend=PHASES,
)


def test_phases_train_as_pretraining_ended_at_their_own_rate() -> None:
    found = extensions(LONG, PRETRAIN)
    assert list(found) == ["extend_64", "extend_128"]
    second = found["extend_128"]
    assert second.model is LONG
    engine = second.config.engine
    assert (engine.bias_update_speed, engine.mtp_coef) == (0.0, 0.1)
    assert [engine.schedule.at(step) for step in (0, 5)] == [1e-5, 1e-5]
    assert second.config.batches.tokens(6) == 6 * 2 * 128
    assert (second.config.checkpoint_every, second.config.validate_every, second.config.extend) == (3, 3, ())


def test_pretraining_before_them_is_not_stretched() -> None:
    assert before_extension(LONG, PRETRAIN) == replace(LONG, rope_factor=1.0, max_position_embeddings=32)
    assert before_extension(LONG, replace(PRETRAIN, extend=())) is LONG


@pytest.mark.parametrize(
    ("model", "pretrain", "message"),
    [
        (replace(LONG, rope_factor=1.0), {}, "model.rope_factor"),
        (replace(LONG, rope_type="llama3"), {}, "rope_type=yarn"),
        (replace(LONG, max_position_embeddings=64), {}, "max_position_embeddings=64"),
        (LONG, {"extend": PHASES[::-1]}, "must rise"),
        (LONG, {"extend": (replace(PHASES[0], row_tokens=32),)}, "must rise"),
    ],
)
def test_phases_that_cannot_work_are_refused(model: ModelConfig, pretrain: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        extensions(model, replace(PRETRAIN, **pretrain))


def test_a_stretched_checkpoint_is_the_same_weights_under_yarn(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    short = before_extension(LONG, PRETRAIN)
    build_model(short, seed=1).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "manifest.json").write_text("{}")
    for _ in range(2):  # a resumed stage makes it again
        start = stretched(tmp_path / "base", LONG, tmp_path / "start")
    assert not (start / "manifest.json").exists()
    ids_BT = torch.arange(48)[None]
    expected = build_model(LONG, seed=1)(ids_BT).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(start)(ids_BT).logits, expected)
    assert not torch.allclose(AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids_BT).logits, expected)


def test_the_graph_chains_the_published_phases() -> None:
    config = compose(["model=v3_671b", "cluster=h800_512"])
    graph = build_graph(config)
    assert [(n, graph.nodes[n].edges["base"].node) for n in ("extend_32768", "extend_131072", "grpo")] == [  # type: ignore[union-attr]
        ("extend_32768", "pretrain"), ("extend_131072", "extend_32768"), ("grpo", "extend_131072"),
    ]  # fmt: skip
    pretrain: Any = graph.nodes["pretrain"].stage
    assert (pretrain.model.rope_factor, pretrain.model.max_position_embeddings) == (1.0, 4096)
    phases: list[Any] = [graph.nodes[name].stage for name in ("extend_32768", "extend_131072")]
    hours = sum(phase.estimate(config.cluster).hours for phase in phases)
    assert hours * 512 == pytest.approx(119e3, rel=0.01)  # V3 Table 1


def test_the_laptop_has_none() -> None:
    graph = build_graph(compose([]))
    names = ["collect", "clean", "tokenizer", "tokenize", "pretrain", "eval_base", "grpo", "eval_r1_zero"]
    assert list(graph.nodes) == names
