"""Supervised training: packed documents and whole rows against a plain loop; validation shared by the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from tests.distributed import run_ranks
from tests.learners import VOCAB, minibatch, tiny_learner, tiny_model

STEPS, LR, CLIP = 3, 3e-3, 0.5


def batch(step: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Documents of uneven lengths and the tokens to learn of each: its second half, as a chat's answer."""
    rng = np.random.default_rng(step)
    documents = [rng.integers(0, VOCAB, n).astype(np.int32) for n in (5, 40, 17, 3, 29, 17, 60, 8)]
    return documents, [(np.arange(len(ids)) >= len(ids) // 2).astype(np.int32) for ids in documents]


def plain_losses() -> list[tuple[float, float]]:
    """(loss, gradient norm) by step of a plain loop over one document at a time."""
    model = tiny_model().train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, found = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95)), []
    for step in range(STEPS):
        documents, trained = batch(step)
        tokens, total = sum(int(marks[1:].sum()) for marks in trained), 0.0
        for ids, marks in zip(documents, trained, strict=True):
            ids_T, learned_T = torch.from_numpy(ids).long(), torch.from_numpy(marks[1:]) > 0
            logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
            loss = cross_entropy(logits_TV[learned_T], ids_T[1:][learned_T], reduction="sum") / tokens
            loss.backward()
            total += float(loss.detach())
        found.append((total, float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))))
        optimizer.step()
        optimizer.zero_grad()
    return found


def trained_losses(token_budget: int, ep_size: int = 1, balance_alpha: float = 0.0) -> list[tuple[float, float]]:
    """The same from the trainer, documents packed."""
    config = DeepSpeedConfig(
        schedule=LrSchedule(lr=LR), token_budget=token_budget, clip=CLIP, ep_size=ep_size, balance_alpha=balance_alpha
    )
    trainer = Trainer(tiny_model(), config, DocumentLm())
    metrics = [trainer.step(Documents(*batch(step))).metrics for step in range(STEPS)]
    return [(found["loss"], found["grad_norm"]) for found in metrics]


def test_packed_documents_train_as_one_at_a_time() -> None:
    expected = plain_losses()
    for token_budget in (64, 400):  # about one document a micro-batch, and all in one
        np.testing.assert_allclose(trained_losses(token_budget), expected, rtol=1e-5)


@pytest.mark.slow
def test_neither_ranks_nor_expert_parallelism_change_a_step() -> None:
    alone = trained_losses(100, balance_alpha=1e-2)
    for losses in run_ranks(trained_losses, 2, 100, 2, 1e-2):
        np.testing.assert_allclose(losses, alone, rtol=1e-5)


def test_a_document_above_the_token_budget_is_refused() -> None:
    trainer = Trainer(tiny_model(), DeepSpeedConfig(token_budget=16), DocumentLm())
    with pytest.raises(UserError, match="token_budget"):
        trainer.step(Documents(*batch(0)))


def validation(rows_BT: torch.Tensor, zero_stage: int, ep_size: int) -> tuple[float, float, float]:
    """Validation loss before a step on the same rows, and after it; tokens that the step sent to experts."""
    config = DeepSpeedConfig(schedule=LrSchedule(lr=LR), token_budget=64, zero_stage=zero_stage, ep_size=ep_size)
    trainer = Trainer(tiny_model(), config, StreamLm())
    before, load_LE = trainer.evaluate(rows_BT)["loss"], trainer.step(rows_BT).expert_load_LE
    assert load_LE is not None
    return before, trainer.evaluate(rows_BT)["loss"], float(load_LE.sum())


@pytest.mark.slow
def test_validation_loss_is_the_mean_over_all_ranks_rows() -> None:
    rows_BT = torch.randint(VOCAB, (5, 33), generator=torch.Generator().manual_seed(0))
    model: Any = tiny_model().eval()
    with torch.no_grad():
        logits_BTV = model(input_ids=rows_BT[:, :-1]).logits
    expected = float(cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten()))
    alone = validation(rows_BT, 1, 1)
    assert alone[0] == pytest.approx(expected, rel=1e-5)
    # 3 rows and 2, two a forward: the second rank ends with a placeholder, or the first would wait for its shards
    for found in run_ranks(validation, 2, rows_BT, 3, 2):
        assert found == pytest.approx(alone, rel=1e-5)


def test_the_reference_is_put_in_place_once_for_all_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [minibatch(seed=seed) for seed in range(3)]
    apart, together = tiny_learner(kl_coef=0.1), tiny_learner(kl_coef=0.1)
    expected = [apart.train_minibatch(one) for one in batch]
    put, weights_of = list[Any](), together.engine.weights_of
    monkeypatch.setattr(together.engine, "weights_of", lambda given: put.append(given) or weights_of(given))
    assert [result.metrics for result in together.train_minibatches(batch)] == [one.metrics for one in expected]
    assert put == [together.trainer.reference]
