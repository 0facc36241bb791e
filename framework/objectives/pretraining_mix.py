"""A policy objective with some pretraining beside it (InstructGPT's PPO-ptx), so that the policy forgets less of it.

Dimensions: T tokens of a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from framework.algorithms.lm_loss import lm_loss
from framework.data.packing import pack_documents
from framework.models.packed_attention import SegmentLayout, packed_logprobs
from framework.objectives.judged_rows import extended
from framework.objectives.objective import BatchSize, Objective, Share
from framework.objectives.policy_rows import PolicyRows
from framework.types import LossOutput, MicroBatch, Minibatch, PolicyMicroBatch


@dataclass(frozen=True)
class PretrainingMicroBatch(MicroBatch):
    """Rows of text in a minibatch of responses; all their tokens are learned."""

    scale: float  # of the summed nll in the loss
    share: float  # response tokens of the minibatch over those of its text: makes the metric a mean


@dataclass(frozen=True)
class PretrainingMix(Objective[Minibatch, MicroBatch]):
    """The policy's loss + coef times the mean nll of the tokens in `Minibatch.pretraining` (2203.02155 eq. 2).

    The gradients of both add up in one step. Metrics are the policy's, and pretraining_nll.
    """

    rows: PolicyRows
    coef: float  # gamma; InstructGPT: 27.8

    shares_prefixes: ClassVar[bool] = True
    scores_tokens: ClassVar[bool] = True

    @property
    def keeps_reference(self) -> bool:
        """Where the policy does."""
        return self.rows.keeps_reference

    def size(self, batch: Minibatch) -> BatchSize:
        """The policy's."""
        return self.rows.size(batch)

    def micro_batches(self, batch: Minibatch, share: Share) -> Sequence[MicroBatch]:
        """The responses' rows, then those of text."""
        tokens = sum(len(row) - 1 for row in batch.pretraining)
        scale = self.coef * self.rows.size(batch).divisor / max(tokens, 1)
        responses = self.rows.size(batch).tokens / max(tokens, 1)
        found: list[MicroBatch] = []
        for micro in pack_documents(batch.pretraining, share.token_budget, rank=share.rank, ranks=share.ranks):
            numbered = tuple(len(batch.samples) + index for index in micro.sample_index_S)
            found.append(extended(PretrainingMicroBatch, replace(micro, sample_index_S=numbered), scale, responses))
        return [*self.rows.micro_batches(batch, share), *found]

    def loss(self, model: Any, micro: MicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """The policy's of responses, the scaled nll of text."""
        if isinstance(micro, PolicyMicroBatch):
            return self.rows.loss(model, micro, layout)
        assert isinstance(micro, PretrainingMicroBatch)
        found = lm_loss(packed_logprobs(model, micro, layout=layout).logprobs_T, micro.mask_T)
        return LossOutput(micro.scale * found.loss, {"pretraining_nll": micro.share * found.metrics["nll"]})

    def with_reference(self, model: Any, micro: MicroBatch, layout: SegmentLayout | None) -> MicroBatch:
        """Text needs none."""
        return self.rows.with_reference(model, micro, layout) if isinstance(micro, PolicyMicroBatch) else micro

    def first_bad(self, batch: Minibatch) -> str:
        """The policy's."""
        return self.rows.first_bad(batch)

    def name(self, batch: Minibatch, index: int) -> str:
        """A response by its prompt, text by its place."""
        own = index < len(batch.samples)
        return self.rows.name(batch, index) if own else f"pretraining row {index - len(batch.samples)}"
