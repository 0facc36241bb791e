"""Classification by transformers' own ...ForSequenceClassification, of padded rows.

Not packed: each of these heads reads one place of a row, its first or last token, and so takes a row a text.
Dimensions: B texts of a micro-batch, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from framework.data.packing import plan_packing
from framework.models.packed_attention import SegmentLayout
from framework.objectives.objective import BatchSize, Objective, Share
from framework.types import Int32, LossOutput, MicroBatch


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens, special ones included, and its class."""

    token_ids: Int32  # [T]
    label: int


@dataclass(frozen=True)
class TextMicroBatch(MicroBatch):
    """Padded texts, laid end to end: `segment_lengths_S` are all T."""

    lengths_B: torch.Tensor  # int64, without pads
    labels_B: torch.Tensor  # int64


@dataclass(frozen=True)
class Classify(Objective[Sequence[EncodedText], TextMicroBatch]):
    """Cross-entropy, the mean over texts; the metric accuracy."""

    pad: int
    pad_left: bool = False  # XLNet's head reads the last place of a row

    packed: ClassVar[bool] = False

    def size(self, batch: Sequence[EncodedText]) -> BatchSize:
        """Every text counts once."""
        return BatchSize(len(batch), float(sum(len(text.token_ids) for text in batch)), max(len(batch), 1))

    def micro_batches(self, batch: Sequence[EncodedText], share: Share) -> list[TextMicroBatch]:
        """Texts of similar lengths together."""
        plan = plan_packing([len(text.token_ids) for text in batch], share.token_budget, share.ranks)
        return [self._padded(batch, rows) for rows in plan.ranks[share.rank]]

    def _padded(self, batch: Sequence[EncodedText], rows: Sequence[int]) -> TextMicroBatch:
        texts = [batch[row].token_ids for row in rows] or [np.full(1, self.pad, np.int32)]
        width = max(map(len, texts))
        sides = [(width - len(ids), 0) if self.pad_left else (0, width - len(ids)) for ids in texts]
        padded = [np.pad(ids, side, constant_values=self.pad) for ids, side in zip(texts, sides, strict=True)]
        tokens = torch.from_numpy(np.concatenate(padded)).long()
        return TextMicroBatch(
            token_ids_T=tokens,
            position_ids_T=torch.arange(width).repeat(len(texts)),
            segment_lengths_S=torch.full((len(texts),), width),
            targets_T=torch.zeros_like(tokens),
            mask_T=torch.zeros(len(tokens)),
            sample_index_S=tuple(rows),
            lengths_B=torch.tensor([len(ids) for ids in texts]),
            labels_B=torch.tensor([batch[row].label for row in rows] or [0]),
        )

    def loss(self, model: Any, micro: TextMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Sum over texts."""
        ids_BT = micro.token_ids_T.view(len(micro.lengths_B), -1)
        place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        seen_BT = place_T < micro.lengths_B[:, None]
        logits_BC = model(
            input_ids=ids_BT, attention_mask=(seen_BT.flip(1) if self.pad_left else seen_BT).long()
        ).logits
        counted = float(bool(micro.sample_index_S))
        loss = counted * torch.nn.functional.cross_entropy(logits_BC.float(), micro.labels_B, reduction="sum")
        right = float((logits_BC.detach().argmax(-1) == micro.labels_B).sum()) * counted
        return LossOutput(loss, {"accuracy": right}, counted * len(micro.labels_B), {"logits": logits_BC})

    def name(self, batch: Sequence[EncodedText], index: int) -> str:
        """Text 0, 1, …"""
        return f"text {index}"
