"""Multi-token prediction against a plain computation of V3's eq. 21-25, one document at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from framework.engines.checkpoint import load_hf
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.expert_parallel import own_tensors
from framework.engines.lr_schedule import LrSchedule, StepwiseValue
from framework.engines.published_policy import PublishedPolicy
from framework.engines.trainer import Trainer
from framework.models.families.base import ModelConfig
from framework.models.spec import build_model
from framework.objectives.grpo import Grpo
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from framework.objectives.policy_rows import PolicyRows
from tests.distributed import run_ranks
from tests.learners import TINY_V3, VOCAB, minibatch

LAMBDA, DEPTHS = 0.3, 2
MTP = replace(TINY_V3, num_nextn_predict_layers=DEPTHS)
FIRST = MTP.num_hidden_layers  # layer of the first module


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, n).astype(np.int32) for n in (30, 4, 17, 2, 9)]


def reference_losses(model: Any) -> tuple[torch.Tensor, list[torch.Tensor], list[int]]:
    """Main loss and L_1 .. L_D, each over the main loss's tokens, and how many positions each depth has."""
    tokens = sum(len(ids) - 1 for ids in documents())
    losses, counts = [torch.zeros(()) for _ in range(DEPTHS + 1)], [0] * DEPTHS
    for ids in documents():
        ids_BT = torch.from_numpy(ids).long()[None]
        hidden_BTH = model.model(ids_BT, use_cache=False).last_hidden_state
        losses[0] = losses[0] + cross_entropy(model.lm_head(hidden_BTH)[0, :-1], ids_BT[0, 1:], reduction="sum")
        for k, module in enumerate(model.model.layers[FIRST:], 1):
            left = ids_BT.shape[1] - k  # positions that have a token k places ahead
            if left < 2:
                break
            ahead = model.model.embed_tokens(ids_BT[:, k:]).clone()
            ahead[:, 0] = 0.0  # as vLLM drafts: nothing stands before position 0
            joined = torch.cat([module.enorm(ahead), module.hnorm(hidden_BTH[:, :left])], -1)
            positions = torch.arange(left)[None]
            mask = torch.full((left, left), -torch.inf).triu(1)[None, None]
            block = super(type(module), module).forward  # transformers' decoder layer
            rotary = model.model.rotary_emb(joined, positions)
            states = block(
                module.eh_proj(joined), attention_mask=mask, position_ids=positions, position_embeddings=rotary
            )
            hidden_BTH = module.shared_head.norm(states)
            logits_TV = model.lm_head(hidden_BTH)[0, : left - 1]
            losses[k] = losses[k] + cross_entropy(logits_TV, ids_BT[0, k + 1 :], reduction="sum")
            counts[k - 1] += left - 1
    return losses[0] / tokens, [loss / tokens for loss in losses[1:]], counts


def trained(detached: bool = False, ep_size: int = 1) -> dict[str, float]:
    """Metrics of one step on packed documents."""
    config = DeepSpeedConfig(
        schedule=LrSchedule(lr=1e-3), token_budget=40, mtp_coef=LAMBDA, mtp_detached=detached, ep_size=ep_size
    )
    trainer = Trainer(build_model(MTP, 0), config, DocumentLm())
    result = trainer.step(Documents(documents()))
    assert result.expert_load_LE is not None
    assert len(result.expert_load_LE) == MTP.num_moe_layers + DEPTHS  # the modules' routers are watched as the others
    return dict(result.metrics)


def norm(parameters: Any) -> float:
    return float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm())


@pytest.mark.parametrize("detached", [False, True])
def test_loss_and_gradients_are_the_papers(detached: bool) -> None:
    model: Any = build_model(MTP, 0)
    main, depths, counts = reference_losses(model)
    added = LAMBDA / DEPTHS * torch.stack(depths).sum()
    tokens = sum(len(ids) - 1 for ids in documents())
    (main if detached else main + added).backward()  # detached modules count for no norm that clips the policy
    found = trained(detached)
    assert found["loss"] == pytest.approx(float(main.detach()), rel=1e-5)
    for k, (loss, count) in enumerate(zip(depths, counts, strict=True), 1):
        assert found[f"mtp_loss_{k}"] == pytest.approx(float(loss.detach()) * tokens / count, rel=1e-5)
        assert 0 <= found[f"mtp_accuracy_{k}"] < 0.5
    assert found["grad_norm"] == pytest.approx(norm(model.parameters()), rel=1e-4)


@pytest.mark.slow
def test_expert_parallel_ranks_train_the_modules_alike() -> None:
    alone = trained()
    for found in run_ranks(trained, 2, False, 2):
        assert found == pytest.approx(alone, rel=1e-5)


def test_modules_survive_export_and_are_published(tmp_path: Path) -> None:
    trainer = Trainer(build_model(MTP, 0), DeepSpeedConfig(schedule=LrSchedule(lr=1e-3), token_budget=64), StreamLm())
    rows_BT = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
    trainer.step(rows_BT)
    trainer.export(tmp_path)
    loaded: Any = load_hf(tmp_path, "float32")
    inputs = {"input_ids": rows_BT, "use_cache": False, "mtp_positions": [torch.arange(60)] * DEPTHS}
    with torch.no_grad():
        ours, theirs = trainer.engine.model(**inputs), loaded(**inputs)
    for mine, other in zip([ours.logits, *ours.mtp_logits], [theirs.logits, *theirs.mtp_logits], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    published = {name for name, _ in own_tensors(trainer.engine.model)}
    for name in ("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight",
                 "mlp.experts.7.down_proj.weight", "mlp.gate.e_score_correction_bias"):  # fmt: skip
        assert {f"model.layers.{FIRST + k}.{name}" for k in range(DEPTHS)} <= published


def test_lambda_follows_its_schedule_and_0_freezes_the_modules() -> None:
    config = DeepSpeedConfig(schedule=LrSchedule(lr=1e-3), mtp_coef=StepwiseValue((0.3, 0.1), (1,)), clip=0.0)
    trainer = Trainer(build_model(MTP, 0), config, StreamLm())
    assert trainer.engine.mtp_coef == 0.3
    rows_BT = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
    trainer.step(rows_BT)
    assert trainer.engine.mtp_coef == 0.1
    frozen = Trainer(build_model(MTP, 0), replace(config, mtp_coef=0.0), StreamLm())
    before = [p.clone() for p in frozen.engine.model.model.layers[FIRST:].parameters()]  # type: ignore[union-attr,index]
    assert not any("mtp" in name for name in frozen.step(rows_BT).metrics)
    after = frozen.engine.model.model.layers[FIRST:].parameters()  # type: ignore[union-attr,index]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def trained_policy(spec: ModelConfig, **engine: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Metrics of three steps, each clipped by another factor, and the weights after them."""
    config = DeepSpeedConfig(schedule=LrSchedule(lr=1e-3), token_budget=128, clip=0.01, **engine)
    learner = PublishedPolicy(build_model(spec, 0), config, PolicyRows(Grpo(kl_coef=0.0)))
    found = [dict(learner.train_minibatch(minibatch(seed=seed)).metrics) for seed in range(3)]
    weights = {name: tensor.clone() for name, tensor in own_tensors(learner.engine.model)}
    return found, weights


def test_in_rl_detached_modules_learn_and_leave_the_policy_alone() -> None:
    off, before = trained_policy(MTP, mtp_coef=0.0)
    on, after = trained_policy(MTP, mtp_coef=LAMBDA, mtp_detached=True)
    assert on[0]["mtp_loss_1"] == pytest.approx(np.log(VOCAB), rel=0.2)
    for with_modules, without in zip(on, off, strict=True):
        assert without["grad_norm"] > 0.02
        for name in ("loss", "grad_norm"):  # what clips the policy is the policy's
            assert with_modules[name] == pytest.approx(without[name], rel=1e-4)
    modules = tuple(f"model.layers.{FIRST + k}." for k in range(DEPTHS))
    for name, weights in after.items():
        same = torch.allclose(weights, before[name], rtol=1e-5, atol=2e-5)
        if not name.startswith(modules):
            assert same, name
    assert not torch.allclose(after[modules[0] + "eh_proj.weight"], before[modules[0] + "eh_proj.weight"], atol=2e-5)


def test_detached_modules_take_the_steps_of_attached_ones() -> None:
    rows_BT, found = torch.randint(VOCAB, (2, 33), generator=torch.Generator().manual_seed(0)), {}
    for detached in (False, True):
        # of many gradients Adam's epsilon decides what becomes
        config = DeepSpeedConfig(schedule=LrSchedule(lr=1e-3), mtp_detached=detached, clip=0.0, eps=1e-4)
        trainer = Trainer(build_model(MTP, 0), config, StreamLm())
        trainer.step(rows_BT)
        found[detached] = dict(own_tensors(trainer.engine.model))
    for name, weights in found[True].items():
        if name.startswith(tuple(f"model.layers.{FIRST + k}." for k in range(DEPTHS))):
            torch.testing.assert_close(weights, found[False][name], rtol=0, atol=1e-5)
