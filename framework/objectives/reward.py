"""Reward models: a scalar head on a causal model's last token, trained on preferences or on labels.

Dimensions: S answers of a packed row, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from framework.algorithms.reward_loss import Pointwise, bradley_terry, pointwise
from framework.data.judged import Judged
from framework.models.packed_attention import SegmentLayout, forward_packed
from framework.objectives.judged_rows import extended, name_of, pack_judged, pairs_in
from framework.objectives.objective import BatchSize, Objective, Share
from framework.types import LossOutput, MicroBatch


@dataclass(frozen=True)
class PairMicroBatch(MicroBatch):
    """Answers and the preferences between them, all of a prompt's in one row.

    Three answers to a prompt, the first of them better than the others: pairs (0 1) (0 2), margins 0 0, weights
    0.5 0.5. Places are those of segments in the row.
    """

    pairs_P2: torch.Tensor  # int64, better and worse
    margins_P: torch.Tensor  # float32
    weights_P: torch.Tensor  # float32, 1 / pairs of the prompt


@dataclass(frozen=True)
class LabelMicroBatch(MicroBatch):
    """Answers with a label each: [0.0 1.0]."""

    labels_S: torch.Tensor  # float32


@dataclass(frozen=True)
class PairwiseReward(Objective[Sequence[Judged], PairMicroBatch]):
    """Bradley-Terry: the mean over prompts of the mean over their pairs, one batch element (2203.02155 section 3.5).

    Metrics are means over pairs: accuracy (of the better answer's score being higher), score_gap, loss aside.
    """

    scalar_head: ClassVar[bool] = True
    shares_prefixes: ClassVar[bool] = True

    def size(self, batch: Sequence[Judged]) -> BatchSize:
        """A prompt counts once, however many pairs it has."""
        return _size(batch, len(batch))

    def micro_batches(self, batch: Sequence[Judged], share: Share) -> list[PairMicroBatch]:
        """Pack the answers, those of a prompt together."""
        found = []
        for micro in pack_judged(batch, share):
            pairs = [(*pair, margin, 1 / len(judged.pairs)) for *pair, margin, judged in pairs_in(batch, micro)]
            table_P4 = torch.tensor(pairs, dtype=torch.float64).reshape(len(pairs), 4)
            margins_P, weights_P = table_P4[:, 2].float(), table_P4[:, 3].float()
            found.append(extended(PairMicroBatch, micro, table_P4[:, :2].long(), margins_P, weights_P))
        return found

    def loss(self, model: Any, micro: PairMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Weighted sum over pairs."""
        scores_S = last_token_scores(model, micro, layout)
        losses_P = bradley_terry(scores_S, micro.pairs_P2, micro.margins_P)
        gaps_P = (scores_S[micro.pairs_P2[:, 0]] - scores_S[micro.pairs_P2[:, 1]]).detach()
        sums = torch.stack([(gaps_P > 0).float().sum(), gaps_P.sum()]).tolist()
        metrics = dict(zip(("accuracy", "score_gap"), sums, strict=True))
        return LossOutput((micro.weights_P * losses_P).sum(), metrics, float(len(gaps_P)), {"scores": scores_S})

    def name(self, batch: Sequence[Judged], index: int) -> str:
        """By the prompt's place."""
        return name_of(batch, index)


@dataclass(frozen=True)
class PointwiseReward(Objective[Sequence[Judged], LabelMicroBatch]):
    """A label an answer: safe or not (sigmoid, as DeepSeek-R1's safety model), or a score to be met (scalar).

    Metrics are means over answers: score, and for sigmoid accuracy, of the score's sign being the label's side of 1/2.
    """

    kind: Pointwise = "sigmoid"

    scalar_head: ClassVar[bool] = True
    shares_prefixes: ClassVar[bool] = True

    def size(self, batch: Sequence[Judged]) -> BatchSize:
        """Every answer counts once."""
        return _size(batch, sum(len(judged.rows) for judged in batch))

    def micro_batches(self, batch: Sequence[Judged], share: Share) -> list[LabelMicroBatch]:
        """Pack the answers, those of a prompt together."""
        labels = [label for judged in batch for label in judged.labels]
        return [
            extended(LabelMicroBatch, micro, torch.tensor([labels[row] for row in micro.sample_index_S]))
            for micro in pack_judged(batch, share)
        ]

    def loss(self, model: Any, micro: LabelMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Sum over answers."""
        scores_S = last_token_scores(model, micro, layout)[: len(micro.labels_S)]  # none where nothing is trained
        losses_S, shown_S = pointwise(scores_S, micro.labels_S, self.kind), scores_S.detach()
        metrics = {"score": float(shown_S.sum())}
        if self.kind == "sigmoid":
            metrics["accuracy"] = float(((shown_S > 0) == (micro.labels_S > 0.5)).sum())
        return LossOutput(losses_S.sum(), metrics, float(len(shown_S)), {"scores": scores_S})

    def name(self, batch: Sequence[Judged], index: int) -> str:
        """By the prompt's place."""
        return name_of(batch, index)


def last_token_scores(model: Any, micro: MicroBatch, layout: SegmentLayout | None = None) -> torch.Tensor:
    """Return the head's score of each segment's last token, [S] float32; `model`: `models.scalar_head`'s, packed."""
    ends_S = micro.segment_lengths_S.cumsum(0) - 1
    return forward_packed(model, micro, layout, ends_S)[:, 0].float()


def _size(batch: Sequence[Judged], divisor: int) -> BatchSize:
    rows = [row for judged in batch for row in judged.rows]
    return BatchSize(len(rows), float(sum(map(len, rows))), divisor)
