"""Language modelling: the mean negative logprob of the tokens to learn, of rows of a stream or of whole documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from framework.algorithms.lm_loss import lm_loss
from framework.data.packing import pack_documents
from framework.models.output_head import Asked, scores_of
from framework.models.packed_attention import SegmentLayout, packed_logprobs
from framework.objectives.objective import BatchSize, Objective, Share
from framework.types import Int32, LossOutput, MicroBatch


class Rows(Protocol):
    """A batch [B, T] of token ids (int64): a tensor, or rows that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """B, T."""
        ...

    def __getitem__(self, chosen: list[int]) -> torch.Tensor:
        """Return some rows."""
        ...


@dataclass(frozen=True)
class Documents:
    """Whole sequences of token ids, [T] each, and the tokens to learn of each.

    A conversation [5 6 7 8] of which the answer [7 8] is learned: trained [0 0 1 1].
    """

    token_ids: Sequence[Int32]
    trained: Sequence[Int32] | None = None  # [T] of 0 and 1 each; None: all. A document's first token never is

    def trained_tokens(self) -> int:
        """Of all documents."""
        if self.trained is None:
            return sum(len(ids) - 1 for ids in self.token_ids)
        return sum(int(marks[1:].sum()) for marks in self.trained)


class StreamLm(Objective[Rows, MicroBatch]):
    """Pretraining: rows that documents run through, every token learned, not masked across documents (V3 §4.1)."""

    packed: ClassVar[bool] = False
    scores_tokens: ClassVar[bool] = True

    def size(self, batch: Rows) -> BatchSize:
        """B sequences of T - 1 tokens."""
        rows, length = batch.shape
        return BatchSize(rows, rows * (length - 1), rows * (length - 1))

    def micro_batches(self, batch: Rows, share: Share) -> Iterator[MicroBatch]:
        """Read this rank's rows, as many a micro-batch as fit its token budget."""
        rows, length = batch.shape
        own = range(share.rank, rows, share.ranks)
        per_micro = max(1, share.token_budget // (length - 1))
        for index in range(math.ceil(math.ceil(rows / share.ranks) / per_micro)):
            chosen = list(own[index * per_micro : (index + 1) * per_micro])
            rows_BT = batch[chosen or [0]]  # a rank without rows left still takes part in the experts' all-to-alls
            targets_T = rows_BT[:, 1:].flatten()
            yield MicroBatch(
                token_ids_T=rows_BT[:, :-1].flatten(),
                position_ids_T=torch.arange(length - 1).repeat(len(rows_BT)),
                segment_lengths_S=torch.full((len(rows_BT),), length - 1),
                targets_T=targets_T,
                mask_T=torch.full(targets_T.shape, float(bool(chosen))),
                sample_index_S=tuple(chosen),
            )

    def loss(self, model: Any, micro: MicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Cross-entropy in nats, summed."""
        if layout is not None:
            return _cross_entropy(packed_logprobs(model, micro, layout=layout).logprobs_T, micro)
        ids_BT = micro.token_ids_T.view(len(micro.segment_lengths_S), -1)
        found = scores_of(model(input_ids=ids_BT, use_cache=False, asked=[Asked(micro.targets_T)]).logits)
        return _cross_entropy(found.logprobs_T, micro)

    def name(self, batch: Rows, index: int) -> str:
        """Row 0, 1, …"""
        return f"row {index}"


class DocumentLm(Objective[Documents, MicroBatch]):
    """Fine-tuning: documents that attend to themselves alone (V3 §5.1), of which the marked tokens are learned."""

    scores_tokens: ClassVar[bool] = True

    def size(self, batch: Documents) -> BatchSize:
        """Their marked tokens."""
        tokens = batch.trained_tokens()
        return BatchSize(len(batch.token_ids), tokens, max(tokens, 1))

    def micro_batches(self, batch: Documents, share: Share) -> Sequence[MicroBatch]:
        """Pack them by length."""
        return pack_documents(
            batch.token_ids, share.token_budget, trained=batch.trained, rank=share.rank, ranks=share.ranks
        )

    def loss(self, model: Any, micro: MicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Cross-entropy in nats, summed."""
        return _cross_entropy(packed_logprobs(model, micro, layout=layout).logprobs_T, micro)

    def name(self, batch: Documents, index: int) -> str:
        """Document 0, 1, …"""
        return f"document {index}"


def _cross_entropy(logprobs_T: torch.Tensor, micro: MicroBatch) -> LossOutput:
    output = lm_loss(logprobs_T, micro.mask_T)
    return LossOutput(output.loss, count=output.count)
