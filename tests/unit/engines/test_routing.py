"""AutoEP's router chooses exactly what transformers' routers choose, and its loads drive the bias and V2's losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from framework.algorithms.balance import auxiliary_losses, load_imbalance
from framework.config import compose
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule, StepwiseValue
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.models.spec import build_model
from framework.objectives.lm import StreamLm
from tests.learners import TINY_V3, VOCAB, minibatch, tiny_learner, tiny_model

E, K, HIDDEN, T = 16, 6, 32, 400


def tiny_v2(seed: int = 0, **changes: Any) -> Any:
    """A float32 V2 model with grouped routing, built by transformers itself."""
    from transformers import AutoModelForCausalLM, DeepseekV2Config

    values: dict[str, Any] = {
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "n_routed_experts": 8,
        "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
        "routed_scaling_factor": 16.0,
    } | changes  # fmt: skip
    config = DeepseekV2Config(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=256, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16,
        qk_rope_head_dim=8, v_head_dim=16, initializer_range=0.08, norm_topk_prob=False, **values,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def routers(version: int) -> tuple[Any, Any]:
    """transformers' router and AutoEP's with the same weights and groups."""
    from deepspeed.moe.ep_router import TokenChoiceTopKRouter
    from transformers import DeepseekV2Config, DeepseekV3Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    sizes = {"hidden_size": HIDDEN, "n_routed_experts": E, "num_experts_per_tok": K, "n_group": 4, "topk_group": 2}
    theirs: Any
    if version == 2:
        config: Any = DeepseekV2Config(**sizes, topk_method="group_limited_greedy", routed_scaling_factor=16.0)  # type: ignore[arg-type]
        theirs, kind = DeepseekV2TopkRouter(config), ("softmax", False, 16.0, False, "max")
    else:
        config = DeepseekV3Config(**sizes, routed_scaling_factor=2.5)  # type: ignore[arg-type]
        theirs, kind = DeepseekV3TopkRouter(config), ("sigmoid", True, 2.5, False, "top2_sum")
    ours: Any = TokenChoiceTopKRouter(HIDDEN, E, 4, 2, K, *kind)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(E, HIDDEN, generator=generator)
    theirs.weight.data.copy_(weight)
    ours.gate.weight.data.copy_(weight)
    if version == 3:
        bias = torch.randn(E, generator=generator)  # large: it decides many choices
        theirs.e_score_correction_bias.copy_(bias)
        ours.e_score_correction_bias = bias.clone()
    return theirs, ours


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_the_router_chooses_what_transformers_chooses(version: int, ties: bool) -> None:
    theirs, ours = routers(version)
    hidden_TH = torch.randn(T, HIDDEN, generator=torch.Generator().manual_seed(1))
    if ties:  # whole groups and experts with equal scores, and tokens for which all are equal
        for weight in (theirs.weight.data, ours.gate.weight.data):
            weight[4:8], weight[9] = weight[:4], weight[8]
        hidden_TH[::5] = 0
        if version == 3:
            for bias in (theirs.e_score_correction_bias, ours.e_score_correction_bias):
                bias.copy_(bias.round())
                bias[4:8], bias[9] = bias[:4].clone(), bias[8].clone()
    with torch.no_grad():
        _, weights_TK, experts_TK = theirs(hidden_TH)
        our_weights_TK, our_experts_TK, load_E = ours(hidden_TH)
    assert torch.equal(our_experts_TK, experts_TK)
    assert torch.equal(our_weights_TK, weights_TK)
    assert torch.equal(load_E.long(), torch.bincount(experts_TK.flatten(), minlength=E))
    groups = (experts_TK // 4).sort(-1).values
    assert int((groups[:, 1:] != groups[:, :-1]).sum(-1).max()) + 1 <= 2, "no token leaves its two groups"


def test_gamma_follows_its_schedule_and_counts_the_whole_batch() -> None:
    """After step s every bias has moved by gamma(s) * sign(mean load - load), and stands still once gamma is 0."""
    rows_BT = torch.randint(0, VOCAB, (4, 33), generator=torch.Generator().manual_seed(0))
    gamma = StepwiseValue(values=(1e-3, 5e-4, 0.0), until=(1, 2))
    config = DeepSpeedConfig(schedule=LrSchedule(lr=1e-3), bias_update_speed=gamma, token_budget=33)  # 4 micro-batches
    trainer = Trainer(tiny_model(), config, StreamLm())
    for speed in (1e-3, 5e-4, 0.0, 0.0):
        before = [bias.clone() for _, bias in trainer.engine.routing.biases()]
        load_LE = trainer.step(rows_BT).expert_load_LE
        assert load_LE is not None
        assert load_LE.sum(-1).tolist() == [4 * 32 * TINY_V3.num_experts_per_tok] * 2
        for (_, bias_E), old_E, load_E in zip(trainer.engine.routing.biases(), before, load_LE, strict=True):
            expected_E = old_E + speed * torch.sign(torch.from_numpy(load_E.mean() - load_E)).float()
            torch.testing.assert_close(bias_E, expected_E, rtol=0, atol=1e-8)


def chains(steps: int) -> torch.Tensor:
    """Rows [steps, 8, 65] in which a token is mostly the successor of the one before, else a frequent one (Zipf)."""
    generator = torch.Generator().manual_seed(0)
    successors = torch.randperm(VOCAB, generator=generator)
    frequencies = 1 / torch.arange(1.0, VOCAB + 1)
    rows_SBT = torch.multinomial(frequencies, steps * 8 * 65, replacement=True, generator=generator).view(steps, 8, 65)
    follows_SBT = torch.rand(rows_SBT.shape, generator=generator) < 0.7
    for t in range(1, 65):
        rows_SBT[..., t] = torch.where(follows_SBT[..., t], successors[rows_SBT[..., t - 1]], rows_SBT[..., t])
    return rows_SBT


@pytest.mark.slow
def test_the_shipped_gamma_keeps_experts_near_their_mean_load() -> None:
    """Loads of the last 20 of 60 steps; without the bias rule the busiest expert's runs away."""
    shipped = compose(["model=v3_tiny"]).stage["pretrain"].engine.bias_update_speed
    spec, rows_SBT, found = replace(TINY_V3, num_hidden_layers=2), chains(60), {}
    for gamma in (shipped, 0.0):
        config = DeepSpeedConfig(schedule=LrSchedule(lr=3e-3), bias_update_speed=gamma)
        trainer = Trainer(build_model(spec, seed=0), config, StreamLm())
        loads = [trainer.step(rows_BT).expert_load_LE for rows_BT in rows_SBT]
        found[gamma] = float(load_imbalance(torch.tensor(sum(loads[-20:]))).max())  # type: ignore[arg-type]
    assert found[shipped] < 1.5 < found[0.0]


def test_rl_freezes_the_bias_unless_it_has_a_gamma_of_its_own() -> None:
    assert DeepSpeedConfig().bias_update_speed == 0
    for speed, moves in ((0.0, False), (0.01, True)):
        learner = tiny_learner(bias_update_speed=speed)
        before = [bias.clone() for _, bias in learner.engine.routing.biases()]
        learner.train_minibatch(minibatch())
        after = [bias for _, bias in learner.engine.routing.biases()]
        assert all(torch.equal(a, b) != moves for a, b in zip(after, before, strict=True))
    with pytest.raises(UserError, match="balance_alpha"):
        tiny_learner(balance_alpha=1e-4)


def test_v2_losses_train_and_depend_on_no_micro_batch() -> None:
    """The reported loss is the papers' sum over layers and mean over sequences; checkpointing recomputes it."""
    rows_BT = torch.randint(0, VOCAB, (6, 33), generator=torch.Generator().manual_seed(0))
    alphas = {"balance_alpha": 0.3, "device_alpha": 5.0, "communication_alpha": 2.0}  # a hundred times V2's: they show

    def trainer(token_budget: int, checkpointing: bool = False, **changes: float) -> Trainer[Any, Any]:
        values: dict[str, Any] = {**alphas, "clip": 0.0} | changes
        config = DeepSpeedConfig(
            schedule=LrSchedule(lr=1e-3), token_budget=token_budget, gradient_checkpointing=checkpointing, **values
        )
        return Trainer(tiny_v2(), config, StreamLm())

    whole = trainer(33 * 6)
    first = whole.step(rows_BT).metrics
    expected = 0.0
    for layer in whole.engine.routing.routes:
        assert (layer.n_groups, layer.groups_per_token) == (4, 2)
        for scores_TE, experts_TK in zip(layer.scores_TE.chunk(6), layer.experts_TK.chunk(6), strict=True):
            losses = auxiliary_losses(scores_TE, experts_TK, torch.tensor([32]), 4, 2)
            parts = (0.3 * losses.expert_S, 5.0 * losses.device_S, 2.0 * losses.communication_S)
            expected += float(sum(parts).detach()) / 6  # type: ignore[union-attr]
    assert first["balance_loss"] == pytest.approx(expected, rel=1e-5)
    plain = trainer(33 * 6, balance_alpha=0.0, device_alpha=0.0, communication_alpha=0.0)
    assert plain.step(rows_BT).metrics["grad_norm"] != pytest.approx(first["grad_norm"], rel=0.01)
    second = whole.step(rows_BT).metrics
    for other in (trainer(33 * 2), trainer(33 * 6, checkpointing=True)):
        for metrics in (first, second):
            assert {k: pytest.approx(v, rel=1e-4) for k, v in metrics.items()} == other.step(rows_BT).metrics


def test_device_losses_need_expert_groups() -> None:
    model = tiny_v2(topk_method="greedy", n_group=None, topk_group=None)
    with pytest.raises(UserError, match="device_alpha"):
        Trainer(model, DeepSpeedConfig(device_alpha=0.05), StreamLm())
