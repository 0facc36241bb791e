"""Shipped sizes and schedules against the papers' own figures, written here by hand."""

from __future__ import annotations

import pytest

from framework.config import compose
from framework.engines.lr_schedule import value_at
from framework.models.spec import parameter_counts

# Parameters in billions: the published counts (V1 section 2.2, MoE section 5.1, V2 section 2.1, V3 section 4.2).
PARAMETERS = {"v1_67b": 67.43, "moe_16b": 16.38, "v2_236b": 235.74, "v2_lite": 15.71, "v3_671b": 671.03,
              "qwen_1_5b": 1.777, "qwen_7b": 7.616, "qwen_14b": 14.77, "qwen_32b": 32.76, "llama_8b": 8.03,
              "llama_70b": 70.55}  # fmt: skip


@pytest.mark.parametrize(("model", "billions"), PARAMETERS.items())
def test_parameters_are_the_published_ones(model: str, billions: float) -> None:
    config = compose([f"model={model}"])
    assert config.model is not None
    assert parameter_counts(config.model).total / 1e9 == pytest.approx(billions, abs=0.006)


def test_r1_zero_is_trained_as_published() -> None:
    config = compose(["model=v3_671b", "cluster=h800_512"])  # Nature, Methods; R1 v2 section B.4.1
    grpo = config.stage["grpo"]
    assert (grpo.steps, grpo.prompts_per_step, grpo.group_size, grpo.minibatches_per_rollout) == (10_400, 32, 16, 16)
    assert (grpo.temperature, value_at(grpo.max_tokens, 0)) == (1.0, 32_768)
    assert (grpo.algorithm.kl_coef, grpo.algorithm.reference_reset_steps) == (0.001, 400)
    assert grpo.engine.learner.schedule.at(5000) == 3e-6


def test_v3_is_pretrained_as_published() -> None:
    pretrain = compose(["model=v3_671b", "cluster=h800_512"]).stage["pretrain"]  # V3 section 4.2
    batches, schedule, engine = pretrain.batches, pretrain.engine.schedule, pretrain.engine
    assert batches.tokens(pretrain.steps) == pytest.approx(14.8e12, rel=1e-3)
    assert (batches.rows_at(0), batches.rows_at(pretrain.steps - 1), pretrain.row_tokens) == (3072, 15_360, 4096)
    assert (engine.beta1, engine.beta2, engine.weight_decay, engine.clip) == (0.9, 0.95, 0.1, 1.0)
    for tokens, lr in ((5e12, 2.2e-4), (9.9e12, 2.2e-4), (14.4e12, 2.2e-5), (14.7e12, 7.3e-6)):
        assert schedule.at(batches.steps(tokens)) == pytest.approx(lr, rel=1e-3)
    assert value_at(engine.bias_update_speed, batches.steps(14.2e12)) == 0.001
    assert value_at(engine.bias_update_speed, batches.steps(14.4e12)) == 0.0
    assert value_at(engine.mtp_coef, batches.steps(9.9e12)) == 0.3
    assert value_at(engine.mtp_coef, batches.steps(10.1e12)) == 0.1
    phases = [(phase.steps, phase.rows_per_step, phase.row_tokens, phase.lr) for phase in pretrain.extend]
    assert phases == [(1000, 1920, 32_768, 7.3e-6), (1000, 480, 131_072, 7.3e-6)]
