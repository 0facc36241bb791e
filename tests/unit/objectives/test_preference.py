"""Objectives on preferences: by hand, against TRL's own losses and gradients, whatever the layout, and in training."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.algorithms import preference_loss
from framework.data.judged import Judged, JudgedRows, write_judged
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.trainer import Trainer
from framework.errors import NotFinite, UserError
from framework.objectives.dpo import Dpo
from framework.objectives.ipo import Ipo
from framework.objectives.kto import Kto
from framework.objectives.objective import Share
from framework.objectives.orpo import Orpo
from framework.objectives.preference import PreferenceObjective
from framework.objectives.preference_rows import PreferenceRows, reference_of
from framework.roles.supervised_data import REFERENCE, JudgedData
from tests.learners import VOCAB, tiny_model

OBJECTIVES: dict[str, PreferenceObjective] = {"dpo": Dpo(), "ipo": Ipo(), "kto": Kto(), "orpo": Orpo()}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_formulas_by_hand() -> None:
    gaps_P = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
    assert preference_loss.dpo(gaps_P, 0.5).tolist() == pytest.approx([-log_sigmoid(g * 0.5) for g in (2, -1, 0)])
    assert preference_loss.ipo(gaps_P, 0.25).tolist() == pytest.approx([0.0, 9.0, 4.0])  # the target is 2
    good_S, bad_S = preference_loss.kto(gaps_P, 1.0, 2.0)
    assert good_S.tolist() == pytest.approx([1 / (1 + math.exp(2 * (g - 1))) for g in (2, -1, 0)])
    assert (good_S + bad_S).tolist() == pytest.approx([1.0] * 3)
    # odds of 4/5 and 1/5 are 4 and 1/4: their ratio 16
    better, worse = (torch.tensor([p], dtype=torch.float64).log() for p in (0.8, 0.2))
    assert preference_loss.orpo(better, worse).item() == pytest.approx(math.log(17 / 16))
    assert preference_loss.log_odds(torch.tensor([-1e-12, -700.0], dtype=torch.float64)).tolist() == pytest.approx(
        [math.log(1e12), -700.0]
    )


@cache
def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(__file__).parents[2] / "goldens" / "trl_losses.json").read_text())
    return found


class Bigram(torch.nn.Module):
    """Scores of each token behind the one before it, as `packed_logprobs` asks a model for them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        table = torch.tensor(golden()[name], dtype=torch.float64)
        self.weight = torch.nn.Parameter(table.view(golden()["vocab"], -1).clone())

    def forward(self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, asked: Any, **_: Any) -> Any:
        logprobs_KV = self.weight[input_ids[0, logits_to_keep]].log_softmax(-1)
        chosen_K = logprobs_KV.gather(-1, asked[0].targets_K[:, None])[:, 0]
        none_K = torch.zeros_like(chosen_K)
        return SimpleNamespace(logits=torch.stack([chosen_K, none_K, none_K], -1)[None])


def rows_of(prompt: list[int], *answers: list[int], **judged: Any) -> Judged:
    rows = tuple(np.array(prompt + answer, np.int32) for answer in answers)
    return Judged(rows, starts=(len(prompt),) * len(answers), **judged)


def trl_batch(name: str) -> list[Judged]:
    if name != "kto":
        return [rows_of(*row, pairs=((0, 1, 0.0),)) for row in golden()["pairs"]]
    batch = [rows_of(prompt, answer, labels=(float(label),)) for prompt, answer, label in golden()["labelled"]]
    return [judged.with_unrelated(batch[place - 1]) for place, judged in enumerate(batch)]


def loss_and_gradient(objective: PreferenceObjective, batch: list[Judged], budget: int, ranks: int = 1) -> Any:
    """A step's loss and gradient, as the trainer sums them over rows and ranks."""
    rows, policy, reference = PreferenceRows(objective), Bigram("policy"), Bigram("reference")
    known, flat = dict[int, float](), [len(judged.rows) for judged in batch]
    for micro in rows.micro_batches(batch, Share(999)):
        known |= reference_of(reference, micro, None)
    ends = np.cumsum([0, *flat])
    spans = zip(batch, ends, ends[1:], strict=False)
    batch = [replace(one, reference=tuple(known[i] for i in range(a, b))) for one, a, b in spans]
    micros = [micro for rank in range(ranks) for micro in rows.micro_batches(batch, Share(budget, rank, ranks))]
    if rows.two_passes:
        sums = torch.stack([rows.first_sums(policy, micro, None) for micro in micros]).sum(0).tolist()
        micros = [rows.with_sums(micro, sums) for micro in micros]
    outputs = [rows.loss(policy, micro, None) for micro in micros]
    loss = torch.stack([output.loss for output in outputs]).sum() / rows.size(batch).divisor
    loss.backward()  # type: ignore[no-untyped-call]
    assert policy.weight.grad is not None
    metrics = {name: sum(output.metrics[name] for output in outputs) for name in outputs[0].metrics}
    return loss.item(), policy.weight.grad.flatten().tolist(), metrics, sum(output.count for output in outputs)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients_are_trl_s(name: str) -> None:
    more = {"data": "labels", "desirable_weight": 1.3, "undesirable_weight": 0.7} if name == "kto" else {}
    objective = replace(OBJECTIVES[name], beta=golden()["beta"], **more)
    loss, gradient, _, _ = loss_and_gradient(objective, trl_batch(name), 999)
    assert loss == pytest.approx(golden()["losses"][name]["loss"], rel=1e-12)
    np.testing.assert_allclose(gradient, golden()["losses"][name]["gradient"], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=6)
@given(budget=st.integers(30, 120), ranks=st.integers(1, 3), seed=st.integers(0, 99))
def test_no_split_of_the_batch_shows(name: str, budget: int, ranks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = []
    for n in rng.integers(2, 4, 5):
        answers = [rng.integers(1, 11, rng.integers(1, 6)).tolist() for _ in range(n)]
        pairs = tuple((a, b, 0.0) for a in range(n) for b in range(a + 1, n))
        batch.append(rows_of(rng.integers(1, 11, rng.integers(1, 4)).tolist(), *answers, pairs=pairs))
    if name == "kto":
        batch = [judged.with_unrelated(batch[place - 1]) for place, judged in enumerate(batch)]
    expected, found = (loss_and_gradient(OBJECTIVES[name], batch, *split) for split in ((999, 1), (budget, ranks)))
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-12)
    assert found[2] == pytest.approx(expected[2], rel=1e-9, abs=1e-12)
    assert found[3] == expected[3] == sum(len(judged.pairs) for judged in batch)
    assert set(found[2]) == {"accuracy", "score_gap", "score_better", "score_worse"} | (
        {"kl"} if name == "kto" else set()
    )


def test_labelled_answers_are_right_where_the_sign_of_their_score_is() -> None:
    """Scores by hand: beta (log-ratio - KL), as KTO has them; their accuracy is over all, whatever each weighs."""
    objective = Kto(beta=0.1, data="labels", desirable_weight=1.3, undesirable_weight=0.7)
    _, _, metrics, count = loss_and_gradient(objective, trl_batch("kto"), 60)
    tables = [Bigram(name).weight.detach().log_softmax(-1) for name in ("policy", "reference")]

    def ratio(prompt: list[int], answer: list[int]) -> float:
        row = [*prompt[-1:], *answer]
        policy, reference = (sum(float(t[a, b]) for a, b in itertools.pairwise(row)) for t in tables)
        return policy - reference

    rows = golden()["labelled"]
    unrelated = [ratio(prompt, rows[place - 1][1]) for place, (prompt, _, _) in enumerate(rows)]
    kl = max(0.0, float(np.mean(unrelated)))
    right = sum((ratio(prompt, answer) > 0) == bool(label) for prompt, answer, label in rows)
    assert count == len(rows)
    assert metrics["kl"] == pytest.approx(kl * count)
    assert metrics["accuracy"] == right


def judged(seed: int, n: int = 6, labelled: bool = False) -> list[Judged]:
    """A low token is the better answer."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(n):
        prompt = rng.integers(3, VOCAB, rng.integers(3, 9)).tolist()
        good, bad = ([*rng.integers(low, low + VOCAB // 2, 4).tolist(), 2] for low in (0, VOCAB // 2))
        if labelled:
            made += [rows_of(prompt, good, labels=(1.0,)), rows_of(prompt, bad, labels=(0.0,))]
        else:
            made.append(rows_of(prompt, good, bad, pairs=((0, 1, 0.0),)))
    return made


CONFIG = DeepSpeedConfig(schedule=LrSchedule(lr=3e-3), token_budget=400, weight_decay=0.0)


@pytest.mark.parametrize("name", [*OBJECTIVES, "kto, labels"])
def test_training_prefers_the_better_answer_and_asks_the_reference_once(name: str, tmp_path: Path) -> None:
    objective = Kto(data="labels") if "labels" in name else OBJECTIVES[name]
    for split, seed in (("train", 0), ("validation", 1)):
        (tmp_path / split).mkdir()
        write_judged(tmp_path / split, judged(seed, labelled="labels" in name), VOCAB)
    feed = JudgedData(tmp_path, PreferenceRows(objective), per_step=6, epochs=9).open(0)
    trainer = Trainer(tiny_model(), CONFIG, feed.objective)
    feed.begin(trainer, tmp_path)
    before = trainer.evaluate(feed.held_out)
    first = trainer.step(feed.batch(0)).metrics
    if objective.reference:  # as long as the policy is its reference
        expected = {"dpo": math.log(2), "ipo": 1 / (2 * objective.beta) ** 2}.get(name, 0.5)
        assert [found["loss"] for found in (first, before)] == pytest.approx([expected] * 2, rel=1e-4)
    for step in range(1, 8):
        last = trainer.step(feed.batch(step)).metrics
    after = trainer.evaluate(feed.held_out)
    assert last["loss"] < first["loss"]
    assert after["loss"] != pytest.approx(before["loss"], rel=1e-3)
    assert last["accuracy"] > 0.8
    if not objective.reference:
        assert not (tmp_path / REFERENCE).exists()
        return
    again = JudgedData(tmp_path, PreferenceRows(objective), per_step=6, epochs=9).open(0)
    again.begin(trainer, tmp_path)  # the weights are others by now: what was kept is taken
    assert [one.reference for one in again.batch(0)] == [one.reference for one in feed.batch(0)]
    np.save(tmp_path / REFERENCE, np.zeros(3))
    with pytest.raises(UserError, match="3 answers"):
        again.begin(trainer, tmp_path)


def test_without_its_reference_nothing_is_trained() -> None:
    trainer = Trainer(tiny_model(), CONFIG, PreferenceRows(Dpo()))
    with pytest.raises(NotFinite, match="the loss of samples 'prompt 0'"):
        trainer.step(judged(0))


def test_shards_say_where_answers_begin(tmp_path: Path) -> None:
    written = judged(3)
    write_judged(tmp_path, written, VOCAB)
    found = JudgedRows(tmp_path, 0)
    assert [found.read(place).starts for place in range(6)] == [one.starts for one in written]
