"""A critic: a scalar head that says at every token of a response what reward is still to come.

Dimensions: T tokens of a packed row, K those of responses in it, R of one response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from framework.algorithms.value_loss import clipped_value_loss
from framework.data.packing import pack_documents, unpack_responses
from framework.models.packed_attention import SegmentLayout, forward_packed
from framework.objectives.judged_rows import extended
from framework.objectives.objective import BatchSize, Objective, Share
from framework.types import Float32, LossOutput, MicroBatch, ValueSample


@dataclass(frozen=True)
class ValueMicroBatch(MicroBatch):
    """Responses whose tokens have returns; K is where the mask is 1, the state before each response token."""

    returns_K: torch.Tensor  # float32
    old_values_K: torch.Tensor  # float32, the critic's before the batch


@dataclass(frozen=True)
class ValueRows(Objective[Sequence[ValueSample], ValueMicroBatch]):
    """Mean over response tokens of the clipped squared error.

    Metrics are means over tokens: value, return, clipped (of tokens whose value had moved out of the range).
    """

    clip: float | None = 0.2

    scalar_head: ClassVar[bool] = True
    shares_prefixes: ClassVar[bool] = True

    def size(self, batch: Sequence[ValueSample]) -> BatchSize:
        """Response tokens."""
        tokens = sum(len(sample.response_ids) for sample in batch)
        return BatchSize(len(batch), float(tokens), float(max(tokens, 1)))

    def micro_batches(self, batch: Sequence[ValueSample], share: Share) -> list[ValueMicroBatch]:
        """Pack the responses."""
        rows = [np.concatenate([sample.prompt_ids, sample.response_ids]) for sample in batch]
        marks = [np.arange(len(row)) >= len(one.prompt_ids) for row, one in zip(rows, batch, strict=True)]
        trained = [marks_T.astype(np.int32) for marks_T in marks]
        found = []
        for micro in pack_documents(rows, share.token_budget, trained=trained, rank=share.rank, ranks=share.ranks):
            own = [batch[index] for index in micro.sample_index_S]
            more = (_joined([sample.returns for sample in own]), _joined([sample.old_values for sample in own]))
            found.append(extended(ValueMicroBatch, micro, *more))
        return found

    def loss(self, model: Any, micro: ValueMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Sum over tokens."""
        kept_K = micro.mask_T.nonzero().squeeze(-1)
        # a placeholder still runs, or the other ranks would wait for it
        values_K = token_values(model, micro, layout, kept_K)
        losses_K = clipped_value_loss(values_K, micro.old_values_K, micro.returns_K, self.clip)
        shown_K = values_K.detach()
        moved_K = (shown_K - micro.old_values_K).abs() > (self.clip or torch.inf)
        sums = torch.stack([shown_K.sum(), micro.returns_K.sum(), moved_K.float().sum()]).tolist()
        metrics = dict(zip(("value", "return", "clipped"), sums, strict=True))
        return LossOutput(losses_K.sum(), metrics, float(len(kept_K)), {"values": values_K})

    def name(self, batch: Sequence[ValueSample], index: int) -> str:
        """By its prompt."""
        return batch[index].prompt_id


def token_values(model: Any, micro: MicroBatch, layout: SegmentLayout | None, kept_K: torch.Tensor) -> torch.Tensor:
    """Return the head's score at positions of a packed row, [K] float32."""
    return forward_packed(model, micro, layout, kept_K)[:, 0].float()


def values_of(model: Any, micro: MicroBatch, layout: SegmentLayout | None) -> dict[int, Float32]:
    """Return the values of each response's tokens, [R] by its place in the batch: a measure for `Trainer.measure`."""
    kept_K = micro.mask_T.nonzero().squeeze(-1)
    values_K = token_values(model, micro, layout, kept_K)
    row_T = torch.zeros(micro.mask_T.shape, device=values_K.device).index_put((kept_K,), values_K)
    return unpack_responses(row_T, micro)


def _joined(arrays: Sequence[Float32]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *arrays]))
