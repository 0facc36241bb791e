"""What the trainer asks of an objective: how a batch becomes rows, what their loss is, what divides it.

Each objective is a file beside this one. The trainer knows none of them: it runs the forward, backward and step, sums
over ranks, trains MTP modules and balances experts beside any of them.

Dimensions: T tokens of a packed row, S segments of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch

from framework.models.packed_attention import SegmentLayout
from framework.types import LossOutput, MicroBatch

BatchT = TypeVar("BatchT")
MicroT = TypeVar("MicroT", bound=MicroBatch)


@dataclass(frozen=True)
class Share:
    """A data-parallel rank's part of a batch, in micro-batches of at most `token_budget` tokens."""

    token_budget: int
    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class BatchSize:
    """Of the whole batch on all ranks. Losses are sums divided by it, so that no split of the batch shows.

    Two conversations of which 3 and 5 tokens are learned: sequences 2, tokens 8, divisor 8.
    """

    sequences: int  # which balance losses are means over
    tokens: float  # learned (by a scalar head: read); MTP modules' losses are means over them
    divisor: float  # of the objective's loss
    metrics: Mapping[str, float] = field(default_factory=dict)  # known of the batch before the step


class Objective(Generic[BatchT, MicroT]):
    """Base of the objectives. All ranks call the methods with the same batch."""

    packed: ClassVar[bool] = True  # sequences of a row attend to themselves alone, by `packed_attention`; where rows
    # are spread over ranks they do in any case, and an objective that does not pack gets a layout then
    scores_tokens: ClassVar[bool] = False  # asks the output head for logprobs, by `models.output_head`
    scalar_head: ClassVar[bool] = False  # the model ends in `models.scalar_head`, not in a vocabulary
    shares_prefixes: ClassVar[bool] = False  # what those of a row begin with alike is computed once

    @property
    def keeps_reference(self) -> bool:
        """Whether the loss needs another model: a copy of the first weights, for `with_reference`."""
        return False

    @property
    def two_passes(self) -> bool:
        """Whether a row's loss needs sums over the whole batch, which a first forward of every row gives."""
        return False

    def size(self, batch: BatchT) -> BatchSize:
        """Return what the whole batch's sums are divided by."""
        raise NotImplementedError

    def micro_batches(self, batch: BatchT, share: Share) -> Iterable[MicroT]:
        """Return a rank's rows, as many as every other rank's: empty ones keep it in step.

        Raises UserError if a sequence is longer than the token budget.
        """
        raise NotImplementedError

    def loss(self, model: Any, micro: MicroT, layout: SegmentLayout | None) -> LossOutput:
        """Run the model's forward once and return the whole row's loss; `layout`: of the row, where it is packed.

        Ranks that share a row return the same loss.
        """
        raise NotImplementedError

    def with_reference(self, model: Any, micro: MicroT, layout: SegmentLayout | None) -> MicroT:
        """Return the row with what the loss needs of the reference, given the model under its weights."""
        raise NotImplementedError

    def first_sums(self, model: Any, micro: MicroT, layout: SegmentLayout | None) -> torch.Tensor:
        """Return what the row adds to those sums, [N], where `two_passes`."""
        raise NotImplementedError

    def with_sums(self, micro: MicroT, sums: Sequence[float]) -> MicroT:
        """Return the row with the sums over the whole batch."""
        raise NotImplementedError

    def first_bad(self, batch: BatchT) -> str:
        """Name the batch's first number that is not finite; "" if there is none."""
        return ""

    def name(self, batch: BatchT, index: int) -> str:
        """Name a sequence of the batch in errors."""
        raise NotImplementedError
