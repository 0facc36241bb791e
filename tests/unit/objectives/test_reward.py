"""Reward models: losses by hand, packed training against a plain loop, checkpoints against transformers' own class."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.algorithms.reward_loss import bradley_terry, pointwise
from framework.artifacts import RewardCheckpoint
from framework.data.judged import Judged, JudgedRows, write_judged
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.sharded_load import load_sharded
from framework.engines.trainer import Trainer
from framework.errors import UserError
from framework.models.spec import build_model
from framework.objectives.objective import Objective, Share
from framework.objectives.reward import PairwiseReward, PointwiseReward
from framework.stages.reward_model import name_padding
from tests.contract.families import CHECKPOINTS, write_checkpoint, write_tokenizer
from tests.distributed import run_ranks
from tests.learners import TINY_V3, VOCAB

LR, CLIP, STEPS, SEED = 3e-3, 0.5, 3, 5
WITHOUT_CLASS = ("deepseek_moe",)


def test_bradley_terry_by_hand() -> None:
    scores_S = torch.tensor([1.0, 3.0, -math.inf])
    losses_P = bradley_terry(scores_S, torch.tensor([[1, 0], [0, 1], [1, 0], [1, 2]]), torch.tensor([0.0, 0, 1, 0]))
    log = lambda gap: math.log1p(math.exp(-gap))  # noqa: E731
    assert losses_P.tolist() == pytest.approx([log(2), log(-2), log(1), 0.0])


def test_pointwise_by_hand() -> None:
    scores_S, labels_S = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    assert pointwise(scores_S, labels_S, "sigmoid").tolist() == pytest.approx([math.log(2), math.log1p(math.exp(2))])
    assert pointwise(scores_S, torch.tensor([-1.0, 0.5]), "scalar").tolist() == [1.0, 2.25]


def judged(seed: int, labelled: bool = False) -> list[Judged]:
    """Prompts with 2 to 4 answers of uneven lengths, which begin alike."""
    rng, made = np.random.default_rng(seed), []
    for n in (2, 4, 2, 3, 2):
        prompt = rng.integers(3, VOCAB, rng.integers(3, 12))  # no padding: it would not be scored
        rows = [
            np.concatenate([prompt, rng.integers(0, VOCAB, rng.integers(1, 25))]).astype(np.int32) for _ in range(n)
        ]
        pairs = tuple((a, b, 0.5 * (b % 2)) for a in range(n) for b in range(a + 1, n))
        labels = tuple(float(label) for label in rng.integers(0, 2, n))
        made.append(Judged(tuple(rows), () if labelled else pairs, labels if labelled else ()))
    return made


def base(directory: Path) -> Path:
    torch.manual_seed(0)
    build_model(TINY_V3, 0).save_pretrained(directory)
    return directory


def plain(directory: Path, labelled: bool) -> list[tuple[float, float, float]]:
    """(loss, accuracy, gradient norm) by step of a plain loop over transformers' class, one answer at a time."""
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32)
    model.score.weight.data.copy_(load_sharded(directory, DeepSpeedConfig(), SEED).score.weight.data)
    decayed, others = ([p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, found = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95)), []
    for step in range(STEPS):
        batch = judged(step, labelled)
        total, right, count = torch.zeros(()), 0, 0
        for one in batch:
            scores_S = torch.stack([model(input_ids=torch.tensor(row.tolist())[None]).logits[0, 0] for row in one.rows])
            if labelled:
                labels_S = torch.tensor(one.labels)
                probability_S = scores_S.sigmoid()
                total = total - (labels_S * probability_S.log() + (1 - labels_S) * (1 - probability_S).log()).sum()
                right, count = right + int(((scores_S > 0) == (labels_S > 0)).sum()), count + len(one.rows)
                continue
            for a, b, margin in one.pairs:
                total = total - (scores_S[a] - scores_S[b] - margin).sigmoid().log() / len(one.pairs)
                right, count = right + int(scores_S[a] > scores_S[b]), count + 1
        loss = total / (count if labelled else len(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        found.append((float(loss.detach()), right / count, norm))
        optimizer.step()
        optimizer.zero_grad()
    return found


def objective(labelled: bool) -> Objective[Any, Any]:
    return PointwiseReward() if labelled else PairwiseReward()


def trained(directory: Path, labelled: bool, budget: int, ep_size: int = 1) -> list[tuple[float, float, float]]:
    """The same from the trainer."""
    config = DeepSpeedConfig(schedule=LrSchedule(lr=LR), token_budget=budget, clip=CLIP, ep_size=ep_size)
    trainer = Trainer(load_sharded(directory, config, SEED), config, objective(labelled))
    metrics = [trainer.step(judged(step, labelled)).metrics for step in range(STEPS)]
    return [(found["loss"], found["accuracy"], found["grad_norm"]) for found in metrics]


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True])
def test_packed_answers_train_as_one_at_a_time(labelled: bool, tmp_path: Path) -> None:
    expected = plain(base(tmp_path), labelled)
    for budget in (128, 2000):
        np.testing.assert_allclose(trained(tmp_path, labelled, budget), expected, rtol=2e-5)


@pytest.mark.slow
def test_ranks_and_expert_parallelism_change_nothing(tmp_path: Path) -> None:
    alone = trained(base(tmp_path), False, 400)
    for found in run_ranks(trained, 2, tmp_path, False, 128, 2):
        np.testing.assert_allclose(found, alone, rtol=2e-5)


def test_all_answers_to_a_prompt_lie_in_one_micro_batch_wherever_it_is() -> None:
    batch = judged(0)
    for ranks in (1, 2, 7):
        gaps, weights = list[tuple[tuple[int, ...], tuple[int, ...], float]](), 0.0
        counts = set()
        for rank in range(ranks):
            micros = PairwiseReward().micro_batches(batch, Share(128, rank, ranks))
            counts.add(len(micros))
            for micro in micros:
                ends = micro.segment_lengths_S.cumsum(0).tolist()
                rows = [tuple(micro.token_ids_T[a:b].tolist()) for a, b in zip([0, *ends], ends, strict=False)]
                for (better, worse), margin in zip(micro.pairs_P2.tolist(), micro.margins_P.tolist(), strict=True):
                    gaps.append((rows[better], rows[worse], margin))
                weights += float(micro.weights_P.sum())
        expected = [(tuple(one.rows[a]), tuple(one.rows[b]), m) for one in batch for a, b, m in one.pairs]
        assert sorted(gaps) == sorted(expected)
        assert weights == pytest.approx(len(batch))
        assert len(counts) == 1
    with pytest.raises(UserError, match="must hold what stays together"):
        PairwiseReward().micro_batches(batch, Share(64))


def test_shards_give_back_what_was_judged(tmp_path: Path) -> None:
    for labelled in (False, True):
        directory = tmp_path / str(labelled)
        directory.mkdir()
        written = judged(1, labelled)
        write_judged(directory, written, VOCAB)
        rows = JudgedRows(directory, seed=3)
        first, second = rows.batch(0, 5), rows.batch(5, 5)
        key = lambda one: [row.tolist() for row in one.rows]  # noqa: E731
        assert sorted(map(key, first)) == sorted(map(key, second)) == sorted(map(key, written))
        assert [key(one) for one in first] != [key(one) for one in second]  # each epoch has an order of its own
        by_rows = {str(key(one)): one for one in written}
        assert all(
            (one.pairs, one.labels) == (by_rows[str(key(one))].pairs, by_rows[str(key(one))].labels) for one in first
        )
    (tmp_path / "True" / "judged.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"judged\.npz"):
        JudgedRows(tmp_path / "True", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name not in WITHOUT_CLASS])
def test_every_family_scores_as_transformers_does_after_training(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    write_checkpoint(name, tmp_path / "base")
    config = DeepSpeedConfig(schedule=LrSchedule(lr=LR), token_budget=400)
    trainer = Trainer(load_sharded(tmp_path / "base", config, SEED), config, PairwiseReward())
    losses = [trainer.step(judged(0)).metrics["loss"] for _ in range(3)]
    assert losses[2] < losses[0]
    trainer.export(tmp_path / "reward")
    write_tokenizer(tmp_path / "reward")
    name_padding(tmp_path / "reward")
    RewardCheckpoint(tmp_path / "reward").check()
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    rows = [np.append(row[row > 2], 2).astype(np.int32) for row in judged(3)[1].rows]  # <pad> 0, <|im_end|> 2
    width = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    again = Trainer(load_sharded(tmp_path / "reward", config, SEED + 1), config, PairwiseReward())
    with torch.no_grad():
        expected = theirs(input_ids=ids_BT, attention_mask=(ids_BT != 0).long()).logits[:, 0]
        for one in (trainer, again):  # a reward model goes on with the head that it has
            (micro,) = PairwiseReward().micro_batches([Judged(tuple(rows), ((0, 1, 0.0),))], Share(400))
            output = PairwiseReward().loss(one.engine.model, micro, one.layout(micro))
            found = dict(zip(micro.sample_index_S, output.outputs["scores"].tolist(), strict=True))
            assert [found[i] for i in range(len(rows))] == pytest.approx(expected.tolist(), abs=1e-4), name


def test_a_family_without_such_a_class_is_refused(tmp_path: Path) -> None:
    write_checkpoint("deepseek_moe", tmp_path)
    with pytest.raises(UserError, match="has no reward model"):
        load_sharded(tmp_path, DeepSpeedConfig(), SEED)


def test_the_head_is_drawn_by_the_seed(tmp_path: Path) -> None:
    base(tmp_path)
    heads = [load_sharded(tmp_path, DeepSpeedConfig(), seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert float(heads[0].std()) == pytest.approx((TINY_V3.hidden_size + 1) ** -0.5, rel=0.3)


def test_modules_of_multi_token_prediction_stay_behind(tmp_path: Path) -> None:
    spec = replace(TINY_V3, num_nextn_predict_layers=1)
    build_model(spec, 0).save_pretrained(tmp_path)
    assert len(load_sharded(tmp_path, DeepSpeedConfig(), SEED).model.layers) == spec.num_hidden_layers
