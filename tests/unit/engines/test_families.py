"""Every family under DeepSpeed: AutoEP changes no logit, training lowers the loss, exports load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.config import CONF, compose
from framework.engines.checkpoint import load_hf
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule, StepwiseValue
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.models.families.base import ModelConfig
from framework.models.spec import build_model
from framework.objectives.lm import StreamLm

STEPS = 4
FAMILIES: dict[str, dict[str, Any]] = {
    "v3_tiny": {},
    "v2_tiny": {"routed_scaling_factor": 16.0},
    "moe_tiny": {},
    "v1_tiny": {},
    "qwen_tiny": {},
    "llama_tiny": {},
}


def small(name: str) -> ModelConfig:
    return replace(compose([f"model={name}"]).model, num_hidden_layers=2, **FAMILIES[name])


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_engine_computes_what_transformers_does_and_exports_it(name: str, tmp_path: Path) -> None:
    spec = small(name)
    plain = build_model(spec, seed=3)
    config = DeepSpeedConfig(schedule=LrSchedule(lr=1e-3), balance_alpha=1e-3 if spec.num_moe_layers else 0)
    trainer = Trainer(build_model(spec, seed=3), config, StreamLm())
    assert len(trainer.engine.routing.layers) == spec.num_moe_layers == (name in ("v3_tiny", "v2_tiny", "moe_tiny"))
    rows_BT = torch.randint(spec.vocab_size, (2, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(rows_BT).logits
        assert relative_error(trainer.engine.model(input_ids=rows_BT).logits, expected) <= 1e-5
    results = [trainer.step(rows_BT) for _ in range(STEPS)]
    losses = [result.metrics["loss"] for result in results]
    assert losses == sorted(losses, reverse=True)
    load_LE = results[-1].expert_load_LE
    assert (load_LE is not None) == bool(spec.num_moe_layers)
    if load_LE is not None:
        assert load_LE.sum() == rows_BT[:, 1:].numel() * spec.num_experts_per_tok
    trainer.export(tmp_path)
    again = load_hf(tmp_path, "float32")
    assert type(again) is type(plain)
    with torch.no_grad():
        trained = trainer.engine.model(input_ids=rows_BT).logits
        assert relative_error(again(rows_BT).logits, trained) <= 1e-5
    assert relative_error(trained, expected) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "model").glob("*_tiny*.yaml")))
def test_every_tiny_model_trains_as_its_shipped_stage_says(name: str) -> None:
    config = compose([f"model={name}"])
    trainer = Trainer(build_model(config.model, seed=0), config.stage["pretrain"].engine, StreamLm())
    rows_BT = torch.randint(config.model.vocab_size, (2, 33), generator=torch.Generator().manual_seed(0))
    metrics = trainer.step(rows_BT).metrics
    assert metrics["grad_norm"] > 0
    assert (metrics["balance_loss"] > 0) == (config.model.num_moe_layers > 0)
    assert ("mtp_loss_1" in metrics) == (config.model.num_nextn_predict_layers > 0)


@pytest.mark.slow
@pytest.mark.parametrize("speed", [1e-3, StepwiseValue((1e-3, 0.0), (5,))])
def test_a_bias_update_without_a_bias_is_refused(speed: float | StepwiseValue) -> None:
    with pytest.raises(UserError, match=r"engine\.bias_update_speed: .*no correction bias"):
        Trainer(build_model(small("v2_tiny"), seed=0), DeepSpeedConfig(bias_update_speed=speed), StreamLm())
