"""Permutation language modelling (XLNet, 1906.08237, sections 2.2 to 2.4): tokens are predicted in a random order.

transformers' class does the two streams of attention: a content stream that sees a token, and a query stream that sees
its place alone. Only the last tokens of the order are predicted (partial prediction, section 2.3); the others come
first and are the context. Rows are full and equally long, as in StreamLm: XLNet's relative attention is not
transformers' attention interface, and so is not packed.

Dimensions: B rows, T tokens of a row, P predicted ones, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from framework.algorithms.logprobs import token_logprobs
from framework.data.masking import choose
from framework.models.packed_attention import SegmentLayout
from framework.objectives.lm import Rows
from framework.objectives.objective import BatchSize, Objective, Share
from framework.types import LossOutput, MicroBatch

CONTEXT = -1  # in the order: before everything that is predicted


@dataclass(frozen=True)
class PermutedRows:
    """Rows [B, T + 1], whose last token is not used, and what seeds their orders."""

    rows: Rows
    seed: int
    first: int  # place of the first row in training


@dataclass(frozen=True)
class PermutedMicroBatch(MicroBatch):
    """Rows laid end to end. Of a row [5 6 7 8] with 8 predicted, then 6: order -1 1 -1 0, mask 0 1 0 1."""

    order_T: torch.Tensor  # int64, CONTEXT or the place among the predicted


@dataclass(frozen=True)
class PermutationLm(Objective[PermutedRows, PermutedMicroBatch]):
    """The mean over predicted tokens of their negative logprob; the metric accuracy."""

    share: float = 1 / 6  # of the tokens that are predicted: the paper's K is 6 (Table 8)
    longest: int = 5  # tokens of a run that is predicted (section A.5)

    packed: ClassVar[bool] = False

    def predicted(self, length: int) -> int:
        """P."""
        return max(1, round(self.share * length))

    def size(self, batch: PermutedRows) -> BatchSize:
        """All tokens are read, P of each row learned."""
        rows, length = batch.rows.shape
        return BatchSize(rows, rows * (length - 1), rows * self.predicted(length - 1))

    def micro_batches(self, batch: PermutedRows, share: Share) -> Iterator[PermutedMicroBatch]:
        """Read this rank's rows and draw their orders."""
        rows, length = batch.rows.shape[0], batch.rows.shape[1] - 1
        own = range(share.rank, rows, share.ranks)
        per_micro = max(1, share.token_budget // length)
        for index in range(math.ceil(math.ceil(rows / share.ranks) / per_micro)):
            chosen = list(own[index * per_micro : (index + 1) * per_micro])
            ids_BT = batch.rows[chosen or [0]][:, :-1]
            order_BT = np.stack([self._order(length, (batch.seed, batch.first + row)) for row in chosen or [0]])
            order_T = torch.from_numpy(order_BT).flatten()
            yield PermutedMicroBatch(
                token_ids_T=ids_BT.flatten(),
                position_ids_T=torch.arange(length).repeat(len(ids_BT)),
                segment_lengths_S=torch.full((len(ids_BT),), length),
                targets_T=ids_BT.flatten(),
                mask_T=(order_T != CONTEXT).float() * float(bool(chosen)),
                sample_index_S=tuple(chosen),
                order_T=order_T,
            )

    def _order(self, length: int, seed: tuple[int, int]) -> Any:
        rng = np.random.default_rng((*seed, 2))
        count = self.predicted(length)
        order_T = np.full(length, CONTEXT, np.int64)
        order_T[choose(np.ones(length, bool), count, self.longest, rng)] = rng.permutation(count)
        return order_T

    def loss(self, model: Any, micro: PermutedMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """Sum over predicted tokens."""
        rows = len(micro.segment_lengths_S)
        order_BT, ids_BT = micro.order_T.view(rows, -1), micro.token_ids_T.view(rows, -1)
        # [B, T, T]: 1 where the first may not see the second, which comes no earlier in the order. A context token
        # comes before all, and sees no token that is predicted.
        hidden_BTT = (order_BT[:, None] >= order_BT[:, :, None]) & (order_BT[:, None] != CONTEXT)
        places_BP = (order_BT != CONTEXT).nonzero()[:, 1].view(rows, -1)
        mapping_BPT = torch.nn.functional.one_hot(places_BP, ids_BT.shape[1])
        dtype = torch.float32
        logits_BPV = model(
            input_ids=ids_BT, perm_mask=hidden_BTT.to(dtype), target_mapping=mapping_BPT.to(dtype), use_mems=False
        ).logits
        targets = ids_BT.gather(1, places_BP).flatten()
        counted = float(bool(micro.sample_index_S))
        nll = -token_logprobs(logits_BPV.flatten(0, 1), targets) * counted
        right = float((logits_BPV.detach().flatten(0, 1).argmax(-1) == targets).sum()) * counted
        return LossOutput(nll.sum(), {"accuracy": right}, counted * len(targets), {"logits": logits_BPV})

    def name(self, batch: PermutedRows, index: int) -> str:
        """Row 0, 1, …"""
        return f"row {index}"
