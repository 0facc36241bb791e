"""The objectives of the table: hand-worked losses, no token seen that is to be predicted, no trace of the split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.data.masking import Masking, Vocabulary
from framework.data.sequences import TextSequence, TextSequences
from framework.data.text_tokenizers import markers, masking_vocabulary
from framework.models.packed_attention import SegmentLayout, use_packed_attention
from framework.models.spec import build_model
from framework.models.table.bert import Bert
from framework.models.table.ctrl import Ctrl
from framework.models.table.distilbert import DistilBert
from framework.models.table.xlnet import XLNet
from framework.objectives.classify import Classify, EncodedText
from framework.objectives.distill import Distillation, DistilledLm
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from framework.objectives.mlm import MaskedLm, forward_masked
from framework.objectives.objective import BatchSize, Objective, Share
from framework.objectives.permutation import PermutationLm, PermutedRows
from tests.unit.models.test_table import SIZES
from tests.unit.table_text import shards_of, tokenizer_of

VOCABULARY = Vocabulary(60, 4, (0, 1, 2, 3, 4))


def total(
    objective: Objective[Any, Any], model: Any, batch: Any, budget: int, ranks: int = 1
) -> tuple[Any, dict[str, float]]:
    """The batch's loss and metrics, summed over micro-batches and ranks."""
    divisor, loss, metrics, count = objective.size(batch).divisor, torch.zeros(()), dict[str, float](), 0.0
    for rank in range(ranks):
        for micro in objective.micro_batches(batch, Share(budget, rank, ranks)):
            layout = SegmentLayout.of_lengths(micro.segment_lengths_S.tolist()) if objective.packed else None
            output = objective.loss(model, micro, layout)
            loss, count = loss + output.loss / divisor, count + output.count
            metrics = {name: metrics.get(name, 0.0) + value for name, value in output.metrics.items()}
    return loss, {name: value / count for name, value in metrics.items()}


def sequences(count: int, pairs: bool = True) -> list[TextSequence]:
    rng, found = np.random.default_rng(0), []
    for place in range(count):
        ids = rng.integers(5, 60, int(rng.integers(6, 24))).astype(np.int32)
        ids[0], ids[-1] = 2, 3
        types = (np.arange(len(ids)) > len(ids) // 2).astype(np.int32)
        found.append(TextSequence(ids, types, place % 2 if pairs else -1, (0, place)))
    return found


def packed(spec: Any, seed: int = 0) -> Any:
    model = build_model(spec, seed).eval()
    use_packed_attention(model)
    return model


def objectives() -> dict[str, tuple[Any, Any, Any]]:
    rows = torch.randint(5, 60, (6, 21), generator=torch.Generator().manual_seed(0))
    texts = [EncodedText(s.token_ids, s.label) for s in sequences(7)]
    from transformers import BertConfig, BertForSequenceClassification

    classifier = BertConfig(**Bert(**SIZES).hf_keys() | {"num_labels": 2})
    teacher = packed(Bert(**SIZES), 1)
    return {
        "mlm": (MaskedLm(Masking(), VOCABULARY), packed(Bert(**SIZES)), sequences(7)),
        "distill": (
            DistilledLm(Masking(), VOCABULARY, teacher),
            packed(DistilBert(**SIZES)),
            sequences(7, pairs=False),
        ),
        "permutation": (PermutationLm(), build_model(XLNet(**SIZES), 0).eval(), PermutedRows(rows, 0, 0)),
        "coded": (DocumentLm(), packed(Ctrl(**SIZES)), Documents([s.token_ids for s in sequences(7)])),
        "classify": (Classify(pad=0), BertForSequenceClassification(classifier).eval(), texts),
    }


@pytest.mark.parametrize("name", ["mlm", "distill", "permutation", "coded", "classify"])
def test_loss_and_gradient_depend_on_no_split(name: str) -> None:
    objective, model, batch = objectives()[name]
    results = []
    for budget, ranks in ((1000, 1), (40, 1), (40, 3)):
        model.zero_grad()
        loss, metrics = total(objective, model, batch, budget, ranks)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradient, metrics))
    for loss, gradient, metrics in results[1:]:
        torch.testing.assert_close(loss, results[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, results[0][1], atol=2e-5, rtol=1e-3)
        assert metrics == pytest.approx(results[0][2], rel=1e-4, abs=1e-5)
    assert set(results[0][2]) == REPORTED[name]


REPORTED = {
    "mlm": {"mlm_loss", "accuracy", "pair_loss", "pair_accuracy"},
    "distill": {"mlm_loss", "accuracy", "soft_loss", "cosine"},
    "permutation": {"accuracy"},
    "coded": set(),
    "classify": {"accuracy"},
}


def test_a_batchs_size_is_what_it_reads_and_what_it_learns() -> None:
    texts = sequences(3)
    tokens = sum(len(each.token_ids) for each in texts)
    rows = torch.zeros(4, 21, dtype=torch.int64)
    assert MaskedLm(Masking(), VOCABULARY).size(texts) == BatchSize(3, tokens, 1.0)
    assert Classify(pad=0).size([EncodedText(each.token_ids, 0) for each in texts]) == BatchSize(3, tokens, 3)
    assert PermutationLm(share=0.26).size(PermutedRows(rows, 0, 0)) == BatchSize(4, 80, 20)
    assert [PermutationLm(share=0.1).predicted(length) for length in (4, 16, 26)] == [1, 2, 3]
    assert StreamLm().size(rows) == BatchSize(4, 80, 80)
    marked = Documents([each.token_ids for each in texts], [np.ones(len(e.token_ids), np.int32) for e in texts])
    assert DocumentLm().size(marked) == BatchSize(3, tokens - 3, tokens - 3)
    assert DocumentLm().size(replace(marked, trained=None)) == BatchSize(3, tokens - 3, tokens - 3)
    none = replace(marked, trained=[np.zeros(len(e.token_ids), np.int32) for e in texts])
    assert DocumentLm().size(none) == BatchSize(3, 0, 1)


@pytest.mark.parametrize("name", ["permutation", "classify"])
def test_accuracy_is_of_what_the_logits_say(name: str) -> None:
    objective, model, batch = objectives()[name]
    right, counted = 0, 0
    for micro in objective.micro_batches(batch, Share(60)):
        with torch.no_grad():
            output = objective.loss(model, micro, None)
        best = output.outputs["logits"].flatten(0, -2).argmax(-1)
        asked = micro.labels_B if name == "classify" else micro.targets_T[micro.order_T >= 0]
        right, counted = right + int((best == asked).sum()), counted + len(asked)
        assert output.metrics["accuracy"] == int((best == asked).sum())
        assert output.count == len(asked)
    assert counted == sum(output.count for output in [*_outputs(objective, model, batch, 1000)])


def _outputs(objective: Any, model: Any, batch: Any, budget: int) -> Any:
    with torch.no_grad():
        for micro in objective.micro_batches(batch, Share(budget)):
            yield objective.loss(model, micro, None)


def test_padding_is_not_seen_on_either_side() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(**Bert(**SIZES).hf_keys() | {"num_labels": 2, "max_position_embeddings": 64})
    model = BertForSequenceClassification(config).eval()
    texts = [EncodedText(s.token_ids, s.label) for s in sequences(5)]
    (micro,) = Classify(pad=0).micro_batches(texts, Share(1000))
    (left,) = Classify(pad=0, pad_left=True).micro_batches(texts, Share(1000))
    width = int(micro.segment_lengths_S[0])
    assert micro.token_ids_T.view(-1, width).flip(1).tolist() != left.token_ids_T.view(-1, width).tolist()
    for row, index in enumerate(left.sample_index_S):
        ids = texts[index].token_ids.tolist()
        assert left.token_ids_T.view(-1, width)[row].tolist() == [0] * (width - len(ids)) + ids
        seen = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids)])
        with torch.no_grad():
            theirs = model(input_ids=left.token_ids_T.view(-1, width)[row : row + 1], attention_mask=seen).logits
            ours = Classify(pad=0, pad_left=True).loss(model, left, None).outputs["logits"][row]
        torch.testing.assert_close(ours, theirs[0])


def test_mlm_and_pairs_are_transformers_own_loss(tmp_path: Path) -> None:
    from transformers import BertForPreTraining

    model, objective, (sequence,) = packed(Bert(**SIZES)), MaskedLm(Masking(), VOCABULARY), sequences(1)
    model.save_pretrained(tmp_path)
    plain = BertForPreTraining.from_pretrained(tmp_path).eval()
    (micro,) = objective.micro_batches([sequence], Share(100))
    labels = torch.where(micro.mask_T > 0, micro.targets_T, -100)
    with torch.no_grad():
        ours, metrics = total(objective, model, [sequence], 100)
        theirs = plain(
            input_ids=micro.token_ids_T[None],
            token_type_ids=micro.type_ids_T[None],
            labels=labels[None],
            next_sentence_label=torch.tensor([sequence.label]),
        ).loss
    torch.testing.assert_close(ours, theirs)
    assert metrics["mlm_loss"] + metrics["pair_loss"] == pytest.approx(float(theirs), rel=1e-5)


def test_another_epoch_hides_other_tokens() -> None:
    (first,) = sequences(1)
    later = TextSequence(first.token_ids, first.type_ids, first.label, (0, 100))
    masks = [MaskedLm(Masking(), VOCABULARY).micro_batches([each], Share(100))[0].mask_T for each in (first, later)]
    assert masks[0].tolist() != masks[1].tolist()


def test_a_permuted_token_sees_neither_itself_nor_what_comes_later() -> None:
    model, objective = build_model(XLNet(**SIZES), 0).eval(), PermutationLm(share=0.4, longest=3)
    rows = torch.randint(5, 60, (1, 21), generator=torch.Generator().manual_seed(1))
    (micro,) = objective.micro_batches(PermutedRows(rows, 0, 0), Share(100))

    def logits(changed: int | None) -> Any:
        ids = micro.token_ids_T.clone()
        if changed is not None:
            ids[changed] = 5 + (ids[changed] - 4) % 55
        with torch.no_grad():
            return objective.loss(model, replace(micro, token_ids_T=ids), None).outputs["logits"][0]

    places = (micro.order_T >= 0).nonzero().flatten().tolist()
    assert len(places) == objective.predicted(20) == 8
    before = logits(None)
    for at in places:
        moved = (logits(at) - before).abs().amax(-1) > 1e-6
        assert moved.tolist() == [bool(micro.order_T[other] > micro.order_T[at]) for other in places]
    context = int((micro.order_T < 0).nonzero()[0])
    assert ((logits(context) - before).abs().amax(-1) > 1e-6).all()


def test_a_student_like_its_teacher_has_nothing_to_learn_but_masked_tokens() -> None:
    model, batch = packed(Bert(**SIZES)), sequences(5, pairs=False)
    hard, _ = total(MaskedLm(Masking(), VOCABULARY), model, batch, 1000)
    same, metrics = total(DistilledLm(Masking(), VOCABULARY, model), model, batch, 1000)
    assert float(same.detach()) == pytest.approx(2 * float(hard.detach()), rel=1e-4)
    assert metrics["soft_loss"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["cosine"] == pytest.approx(1.0, abs=1e-5)
    other = packed(Bert(**SIZES), 1)
    weights = Distillation(temperature=2.0, soft=1.0, masked=0.0, cosine=0.0)
    (micro,) = MaskedLm(Masking(), VOCABULARY).micro_batches(batch, Share(1000))
    layout, every = SegmentLayout.of_lengths(micro.segment_lengths_S.tolist()), torch.arange(len(micro.token_ids_T))
    ours, theirs = (forward_masked(each, micro, layout, every).logits_KV / 2 for each in (model, other))
    by_hand = 4 * (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean()
    soft, _ = total(DistilledLm(Masking(), VOCABULARY, other, weights), model, batch, 40)
    torch.testing.assert_close(soft, by_hand)


def test_sequences_of_a_text_train_an_encoder(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path / "tokenizer", "wordpiece")
    shards = shards_of(tmp_path / "shards", tokenizer)
    found = TextSequences(shards, "train", "next", 64, 0, markers(tokenizer))
    model = packed(Bert(**SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 64}))
    objective = MaskedLm(Masking(), masking_vocabulary(tokenizer, len(tokenizer)))
    optimizer, accuracies = torch.optim.AdamW(model.parameters(), 3e-3), []
    for step in range(70):
        loss, metrics = total(objective, model, [found.at(16 * step + row) for row in range(16)], 2000)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracies.append(metrics["accuracy"])
    assert np.mean(accuracies[:5]) < 0.2
    assert np.mean(accuracies[-10:]) > 0.4
