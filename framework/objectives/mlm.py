"""Masked language modelling on packed rows, with BERT's or ALBERT's judgement of pairs beside it where pairs are.

Dimensions: T tokens of a row, S sequences of it, K predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from framework.algorithms.logprobs import token_logprobs
from framework.data.masking import Masking, Vocabulary, mask
from framework.data.packing import plan_packing
from framework.data.sequences import SINGLE, TextSequence
from framework.models.masked_heads import MaskedOutput
from framework.models.packed_attention import SegmentLayout
from framework.objectives.objective import BatchSize, Objective, Share
from framework.types import LossOutput, MicroBatch


@dataclass(frozen=True)
class MaskedMicroBatch(MicroBatch):
    """Sequences of which some tokens are hidden: `targets_T` are the tokens themselves, `mask_T` 1 where predicted.

    Sequences [2 7 8 3] and [2 9 3], 8 and 9 predicted: tokens 2 7 4 3 2 4 3 (4 is [MASK]), targets 2 7 8 3 2 9 3, mask
    0 0 1 0 0 1 0.
    """

    type_ids_T: torch.Tensor  # int64
    labels_S: torch.Tensor  # int64, of pairs; SINGLE
    predicted: float  # tokens of the whole batch on all ranks, which their part of the loss is divided by
    pairs: int  # the same of pairs
    tokens: int  # and of all tokens


@dataclass(frozen=True)
class _Divisors:
    predicted: float
    pairs: int
    tokens: int


@dataclass(frozen=True)
class MaskedLm(Objective[Sequence[TextSequence], MaskedMicroBatch]):
    """BERT (1810.04805 section 3.1), RoBERTa (1907.11692 section 4), ALBERT (1909.11942 section 3.1).

    The loss is the mean over predicted tokens, plus the mean over pairs of their cross-entropy. Metrics are means over
    predicted tokens: mlm_loss (nats), accuracy; pair_loss and pair_accuracy, of pairs, are weighed so that they are
    means over pairs.
    """

    masking: Masking
    vocabulary: Vocabulary

    def size(self, batch: Sequence[TextSequence]) -> BatchSize:
        """All its tokens are read. The loss is divided already, by two numbers: of predicted tokens and of pairs."""
        return BatchSize(len(batch), float(sum(len(s.token_ids) for s in batch)), 1.0)

    def predicted(self, batch: Sequence[TextSequence]) -> float:
        """Tokens of all sequences."""
        special = self.vocabulary.special
        return float(sum(self.masking.count(int((~np.isin(s.token_ids, special)).sum())) for s in batch))

    def micro_batches(self, batch: Sequence[TextSequence], share: Share) -> list[MaskedMicroBatch]:
        """Mask this rank's and pack them by length."""
        lengths = [len(s.token_ids) for s in batch]
        plan = plan_packing(lengths, share.token_budget, share.ranks)
        divisors = _Divisors(max(self.predicted(batch), 1.0), max(_pairs(batch), 1), max(sum(lengths), 1))
        return [self._packed(batch, rows, divisors) for rows in plan.ranks[share.rank]]

    def _packed(self, batch: Sequence[TextSequence], rows: Sequence[int], divisors: _Divisors) -> MaskedMicroBatch:
        ids, seen, chosen, types = [], [], [], []
        for row in rows:
            sequence = batch[row]
            seen_T, chosen_T = mask(sequence.token_ids, self.masking, self.vocabulary, _rng(sequence))
            ids.append(sequence.token_ids)
            seen.append(seen_T)
            chosen.append(chosen_T)
            types.append(sequence.type_ids)
        if not rows:  # one token that nothing is learned of
            ids = seen = types = [np.zeros(1, np.int32)]
            chosen = [np.zeros(1, bool)]
        return MaskedMicroBatch(
            token_ids_T=_joined(seen),
            position_ids_T=_joined([np.arange(len(part)) for part in ids]),
            segment_lengths_S=torch.tensor([len(part) for part in ids]),
            targets_T=_joined(ids),
            mask_T=_joined(chosen).float(),
            sample_index_S=tuple(rows),
            type_ids_T=_joined(types),
            labels_S=torch.tensor([batch[row].label for row in rows] or [SINGLE]),
            **asdict(divisors),
        )

    def loss(self, model: Any, micro: MaskedMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Both parts, divided already by what the whole batch has of each."""
        kept_K = micro.mask_T.nonzero().squeeze(-1)
        output = forward_masked(model, micro, layout, kept_K)
        return masked_loss(output.logits_KV, micro.targets_T[kept_K], output.pair_logits_S2, micro)

    def name(self, batch: Sequence[TextSequence], index: int) -> str:
        """Sequence 0, 1, …"""
        return f"sequence {index}"


def forward_masked(
    model: Any, micro: MaskedMicroBatch, layout: SegmentLayout | None, predicted_K: torch.Tensor
) -> MaskedOutput:
    """Run a model of `models.masked_heads` on a packed row, as its forward says."""
    output: MaskedOutput = model(
        input_ids=micro.token_ids_T[None],
        position_ids=micro.position_ids_T[None],
        token_type_ids=micro.type_ids_T[None],
        predicted_K=predicted_K,
        first_S=micro.segment_lengths_S.cumsum(0) - micro.segment_lengths_S,
        segments=layout,
    )
    return output


def masked_loss(
    logits_KV: torch.Tensor, targets_K: torch.Tensor, pair_logits_S2: torch.Tensor | None, micro: MaskedMicroBatch
) -> LossOutput:
    """Return the loss of a row, its metrics as sums over predicted tokens."""
    nll_K = -token_logprobs(logits_KV, targets_K)
    loss = nll_K.sum() / micro.predicted
    right = (logits_KV.detach().argmax(-1) == targets_K).float().sum()
    metrics = {"mlm_loss": float(nll_K.detach().sum()), "accuracy": float(right)}
    if pair_logits_S2 is not None:
        labelled_S = micro.labels_S != SINGLE
        logits, labels = pair_logits_S2[labelled_S].float(), micro.labels_S[labelled_S]
        pair = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss = loss + pair / micro.pairs + 0.0 * pair_logits_S2.sum()  # the head takes part, pairs or none
        weight = micro.predicted / micro.pairs  # metrics are divided by the predicted tokens
        metrics |= {"pair_loss": float(pair.detach()) * weight}
        metrics |= {"pair_accuracy": float((logits.detach().argmax(-1) == labels).float().sum()) * weight}
    return LossOutput(loss, metrics, float(len(targets_K)), {"logits": logits_KV})


def _rng(sequence: TextSequence) -> np.random.Generator:
    return np.random.default_rng((*sequence.seed, 0))


def _pairs(batch: Sequence[TextSequence]) -> int:
    return sum(sequence.label != SINGLE for sequence in batch)


def _joined(parts: Sequence[Any]) -> torch.Tensor:
    found = torch.from_numpy(np.concatenate(parts))
    return found if found.dtype == torch.bool else found.long()
