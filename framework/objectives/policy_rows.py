"""A policy objective as the trainer runs it: responses packed, the model's logprobs at the sampler's temperature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from framework.data.packing import pack
from framework.models.packed_attention import SegmentLayout, packed_logprobs
from framework.objectives.objective import BatchSize, Objective, Share
from framework.objectives.policy import PolicyObjective
from framework.stored import Sample
from framework.types import LossOutput, Minibatch, PolicyMicroBatch

Packer = Callable[..., list[PolicyMicroBatch]]  # `packing.pack`, or another layout of the same signal


@dataclass(frozen=True)
class PolicyRows(Objective[Minibatch, PolicyMicroBatch]):
    """`policy` on packed responses; what those to one prompt begin with is computed once, and counts once in loads.

    Metrics are those of the policy's `loss`, and skipped_share: of responses left out because their loss is 0.
    """

    policy: PolicyObjective
    temperature: float = 1.0  # the sampler's: logprobs are of the distribution that it sampled from
    entropy: bool = False  # report the policy's entropy
    packer: Packer = pack

    shares_prefixes: ClassVar[bool] = True
    scores_tokens: ClassVar[bool] = True

    @property
    def keeps_reference(self) -> bool:
        """For the KL term."""
        return self.policy.kl_coef > 0

    def size(self, batch: Minibatch) -> BatchSize:
        """What the policy's mean is over; tokens are those of the samples at hand."""
        tokens = float(sum(sample.length for sample in batch.samples))
        divisor = self.policy.denominator(batch.n_responses, batch.n_tokens)
        skipped = {"skipped_share": 1 - len(batch.samples) / batch.n_responses}
        return BatchSize(len(batch.samples), tokens, divisor, skipped)

    def micro_batches(self, batch: Minibatch, share: Share) -> Sequence[PolicyMicroBatch]:
        """Pack the samples."""
        return self.pack(batch.samples, share)

    def pack(self, samples: Sequence[Sample], share: Share) -> list[PolicyMicroBatch]:
        """Return a rank's packed samples."""
        average = self.policy.average
        return self.packer(samples, share.token_budget, rank=share.rank, ranks=share.ranks, denominator=average)

    def loss(self, model: Any, micro: PolicyMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """The policy's."""
        found = packed_logprobs(model, micro, self.temperature, entropy=self.entropy, layout=layout)
        output = self.policy.loss(found.logprobs_T, micro, found.entropy_T)
        # a ratio is limited before it is used: the loss may hide a logprob that is not finite
        return replace(output, outputs={"logprobs": found.logprobs_T})

    def with_reference(self, model: Any, micro: PolicyMicroBatch, layout: SegmentLayout | None) -> PolicyMicroBatch:
        """With the reference's logprobs."""
        found = packed_logprobs(model, micro, self.temperature, layout=layout)
        return replace(micro, ref_logprobs_T=found.logprobs_T)

    def first_bad(self, batch: Minibatch) -> str:
        """Look at what the sampler and the rewards gave."""
        for index, sample in enumerate(batch.samples):
            given = {"sampler_logprobs": sample.logprob, "old_logprobs": sample.old_logprobs}
            given |= {"token_advantages": getattr(sample, "token_advantages", None)}
            for name, values in (given | {"advantage": sample.advantage}).items():
                if values is not None and not np.isfinite(values).all():
                    return f"{name} of samples {self.name(batch, index)!r}"
        return ""

    def name(self, batch: Minibatch, index: int) -> str:
        """By its prompt."""
        return batch.samples[index].prompt_id
