"""How a batch of stored responses reaches the ranks: all get its outlines, each the responses that it trains on.

A place of the batch is (minibatch, sample); those of the probe, which every rank measures whole, are (PROBE, sample).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from framework.data.packing import plan_samples
from framework.objectives.objective import Share
from framework.roles.rl_batch import TrainBatch
from framework.stored import Place, Sample, SampleOutline
from framework.types import Response

At = tuple[int, int]
PROBE = -1


def places(batch: TrainBatch) -> dict[At, Place]:
    """Where each response lies that is not in the batch itself."""
    return {
        (part, index): sample.place
        for part, samples in _parts(batch).items()
        for index, sample in enumerate(samples)
        if isinstance(sample, SampleOutline) and sample.place is not None
    }


def without_places(batch: TrainBatch) -> TrainBatch:
    """Return the batch as all ranks get it."""
    return _changed(
        batch, lambda _, sample: replace(sample, place=None) if isinstance(sample, SampleOutline) else sample
    )


def wanted(batch: TrainBatch, share: Share) -> list[list[At]]:
    """For each of `share.ranks` data-parallel ranks what it trains on, or measures, of all these places."""
    found: list[list[At]] = [[(PROBE, index) for index in range(len(batch.probe))] for _ in range(share.ranks)]
    for part, minibatch in enumerate(batch.minibatches):
        plan = plan_samples(minibatch.samples, share.token_budget, share.ranks)
        for own, micros in zip(found, plan.ranks, strict=True):
            own += [(part, index) for micro in micros for index in micro]
    return found


def filled(batch: TrainBatch, responses: Mapping[At, Response]) -> TrainBatch:
    """Return the batch with the responses that are here."""

    def fill(at: At, sample: Sample) -> Sample:
        return sample.whole(responses[at]) if isinstance(sample, SampleOutline) and at in responses else sample

    return _changed(batch, fill)


def loaded(batch: TrainBatch) -> TrainBatch:
    """Return the batch with all responses, fetched into this process; raises ResponsesLost."""
    return filled(batch, {at: place.load() for at, place in places(batch).items()})


def _parts(batch: TrainBatch) -> dict[int, Sequence[Sample]]:
    return {PROBE: batch.probe, **{part: minibatch.samples for part, minibatch in enumerate(batch.minibatches)}}


def _changed(batch: TrainBatch, change: Callable[[At, Sample], Sample]) -> TrainBatch:
    def each(part: int, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        return tuple(change((part, index), sample) for index, sample in enumerate(samples))

    minibatches = tuple(replace(one, samples=each(part, one.samples)) for part, one in enumerate(batch.minibatches))
    return replace(batch, minibatches=minibatches, probe=each(PROBE, batch.probe))
