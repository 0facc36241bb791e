"""Train samples to packed micro-batches: balanced over ranks, filled to a token budget, no pads between sequences.

The order of work follows R1 (supplement B.1): sort by length, deal over data-parallel ranks, best-fit into fixed
chunks on each rank, equalise the number of chunks over ranks. Responses to one prompt stay together where that takes
no longer: in one micro-batch their prompt is computed once (`models.shared_prefixes`).

Dimensions: P prompt tokens, R response tokens, T tokens of a packed row, S segments of it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch

from framework.errors import UserError
from framework.stored import Sample
from framework.types import Denominator, Float32, Int32, MicroBatch, PolicyMicroBatch, TrainSample

M = TypeVar("M", bound=MicroBatch)
TOGETHER = 1.02  # what keeping a prompt's responses together may cost in balance and room


@dataclass(frozen=True)
class PackingPlan:
    """Which sample goes where: ranks[rank][micro_batch] lists sample indices, longest first.

    All ranks have the same number of micro-batches; an empty tuple is one that only keeps the ranks in step.
    """

    ranks: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def micro_batches(self) -> int:
        """Micro-batches on each rank."""
        return len(self.ranks[0])


def plan_packing(
    lengths: Sequence[int], token_budget: int, ranks: int, prompts: Sequence[str] | None = None
) -> PackingPlan:
    """Spread sequences of these lengths over ranks and micro-batches of at most `token_budget` tokens.

    Those of one prompt (by the ids `prompts`) are dealt as one where that costs at most TOGETHER of the time. Depends
    on nothing but its arguments, so that every rank derives the same plan. Raises UserError if a sequence is longer
    than the budget or `ranks` is below 1.
    """
    if ranks < 1:
        raise UserError("learner ranks", ranks, "must be 1 or more")
    longest = max(lengths, default=0)
    if longest > token_budget:
        raise UserError("token_budget", token_budget, f"must hold the longest sequence, {longest} tokens")
    alone = plan_units([(index,) for index in range(len(lengths))], lengths, token_budget, ranks)
    if prompts is None:
        return alone
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    if max((sum(lengths[i] for i in group) for group in groups.values()), default=0) > token_budget:
        return alone
    together = plan_units(list(groups.values()), lengths, token_budget, ranks)
    return together if _steps(together, lengths) <= TOGETHER * _steps(alone, lengths) else alone


def plan_units(units: Sequence[Sequence[int]], lengths: Sequence[int], token_budget: int, ranks: int) -> PackingPlan:
    """As `plan_packing`, of units of sequences that must stay together. Raises UserError if one exceeds the budget."""
    sizes = [sum(lengths[i] for i in unit) for unit in units]
    if (largest := max(sizes, default=0)) > token_budget:
        raise UserError("token_budget", token_budget, f"must hold what stays together, up to {largest} tokens")
    bins_of_ranks = [_best_fit(indices, sizes, token_budget) for indices in _balance(sizes, ranks)]
    # At least one: a learner with nothing to train on still takes part in the collectives of its peers.
    count = max(1, *(len(bins) for bins in bins_of_ranks))

    def longest_first(found: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted((i for unit in found for i in units[unit]), key=lambda i: (-lengths[i], i)))

    return PackingPlan(tuple((*map(longest_first, bins), *[()] * (count - len(bins))) for bins in bins_of_ranks))


def _steps(plan: PackingPlan, lengths: Sequence[int]) -> int:
    """Tokens of the fullest rank, summed over micro-batches, at each of which ranks may wait for each other."""
    return sum(max(sum(lengths[i] for i in micro) for micro in micros) for micros in zip(*plan.ranks, strict=True))


def plan_samples(samples: Sequence[Sample], token_budget: int, ranks: int) -> PackingPlan:
    """Return which sample goes where, as `pack` lays them; raises UserError as `plan_packing`."""
    lengths, prompts = [_length(sample) for sample in samples], [sample.prompt_id for sample in samples]
    return plan_packing(lengths, token_budget, ranks, prompts)


def pack(
    samples: Sequence[Sample],
    token_budget: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    denominator: Denominator = "response",
    ref_logprobs: Sequence[Float32] | None = None,
) -> list[PolicyMicroBatch]:
    """Return the micro-batches of one data-parallel rank; every rank calls it with the same samples.

    Of those that other ranks train on an outline will do. Position t predicts token t+1; the mask is 1 where that token
    belongs to the response, whose last token predicts nothing and so has no position. weights_T is 1/R with the
    "response" denominator, else 1. `ref_logprobs` ([R] for each sample) default to zeros, for kl_coef = 0 or to be
    filled in later. Raises UserError if a sample is longer than the budget, ValueError if its arrays disagree.
    """
    plan = plan_samples(samples, token_budget, ranks)
    micro_batches = []
    for indices in plan.ranks[rank]:
        segments = [
            _policy_segment(_here(samples[i]), denominator, None if ref_logprobs is None else ref_logprobs[i])
            for i in indices
        ]
        micro_batches.append(_micro_batch(PolicyMicroBatch, segments, indices))
    return micro_batches


def pack_padded(
    samples: Sequence[TrainSample],
    token_budget: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    denominator: Denominator = "response",
    ref_logprobs: Sequence[Float32] | None = None,
) -> list[PolicyMicroBatch]:
    """Return the same training signal laid out with one sample a row, every row padded to its micro-batch's longest.

    The baseline that packing is measured against: rows in the order given, dealt to ranks in turn, B x longest within
    the token budget. Pads carry mask 0 and close each segment, so B rows of L tokens are B segments of length L.
    """
    _ = plan_packing([_length(sample) for sample in samples], token_budget, ranks)  # the same checks
    rows_of_ranks = [_fill_rows(range(r, len(samples), ranks), samples, token_budget) for r in range(ranks)]
    count = max(1, *(len(rows) for rows in rows_of_ranks))
    micro_batches = []
    for indices in [*rows_of_ranks[rank], *[()] * (count - len(rows_of_ranks[rank]))]:
        width = max((_length(samples[i]) for i in indices), default=0)
        segments = []
        for i in indices:
            segment = _policy_segment(samples[i], denominator, None if ref_logprobs is None else ref_logprobs[i])
            segments.append(segment.padded(width))
        micro_batches.append(_micro_batch(PolicyMicroBatch, segments, indices))
    return micro_batches


def pack_documents(
    documents: Sequence[Int32],
    token_budget: int,
    *,
    trained: Sequence[Int32] | None = None,
    units: Sequence[Sequence[int]] | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> list[MicroBatch]:
    """Return packed micro-batches for supervised training, where sequences do not see each other.

    `trained` ([T] of 0 and 1 for each document) marks the tokens to learn, by default all; the first token of a
    document is never predicted. `units`: documents that must lie in one micro-batch; by default each for itself.
    """
    together = units or [(index,) for index in range(len(documents))]
    plan = plan_units(together, [len(document) for document in documents], token_budget, ranks)
    return [
        _micro_batch(
            MicroBatch, [_segment(documents[i], None if trained is None else trained[i]) for i in indices], indices
        )
        for indices in plan.ranks[rank]
    ]


def unpack_responses(values_T: torch.Tensor, micro: MicroBatch) -> dict[int, Float32]:
    """Return each sample's values at its trained positions, [R] by sample index: the inverse of `pack`."""
    values, mask = values_T.detach().float().cpu().numpy(), micro.mask_T.cpu().numpy() > 0
    ends = np.cumsum(micro.segment_lengths_S.cpu().numpy())
    responses = {}
    for index, start, end in zip(micro.sample_index_S, np.concatenate([[0], ends[:-1]]), ends, strict=False):
        responses[index] = values[start:end][mask[start:end]]
    return responses


def to_device(micro: M, device: torch.device | str) -> M:
    """Return the micro-batch with its tensors on `device`."""
    values = {f.name: getattr(micro, f.name) for f in fields(micro)}
    tensors: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return replace(micro, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class _Segment:
    """One sequence's share of a packed row; all arrays [T] of that sequence."""

    token_ids: Int32
    targets: Int32
    mask: Float32

    def padded(self, width: int) -> Self:
        """Return it closed with zeros (token 0, mask 0) to `width` tokens."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{name: np.pad(array, (0, width - len(array))) for name, array in arrays.items()})


@dataclass(frozen=True)
class _PolicySegment(_Segment):
    """A response's."""

    weights: Float32
    advantages: Float32
    old_logprobs: Float32
    sampler_logprobs: Float32
    ref_logprobs: Float32


def _length(sample: Sample) -> int:
    """Positions: one less than tokens."""
    return len(sample.prompt_ids) + sample.length - 1


def _here(sample: Sample) -> TrainSample:
    assert isinstance(sample, TrainSample), f"prompt {sample.prompt_id!r}: its response is not on this rank"
    return sample


def _balance(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal sequences, longest first, each to the rank with the fewest tokens so far (LPT: within 4/3 of the best)."""
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, rank = heapq.heappop(loads)
        dealt[rank].append(index)
        heapq.heappush(loads, (tokens + lengths[index], rank))
    return dealt


def _best_fit(indices: Sequence[int], lengths: Sequence[int], token_budget: int) -> list[tuple[int, ...]]:
    """Put each sequence, longest first, into the fullest micro-batch that still holds it; fullest ones come first.

    Ranks wait for each other at every micro-batch, so those of about equal size should meet.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens still free, bin), tightest first
    for index in indices:
        at = bisect_left(rooms, (lengths[index], 0))
        if at < len(rooms):
            room, chosen = rooms.pop(at)
        else:
            room, chosen = token_budget, len(bins)
            bins.append([])
        bins[chosen].append(index)
        insort(rooms, (room - lengths[index], chosen))
    return [tuple(bins[chosen]) for _, chosen in rooms]


def _fill_rows(indices: Sequence[int], samples: Sequence[TrainSample], token_budget: int) -> list[tuple[int, ...]]:
    batches: list[tuple[int, ...]] = []
    rows: list[int] = []
    for index in indices:
        width = max(_length(samples[i]) for i in [*rows, index])
        if rows and width * (len(rows) + 1) > token_budget:
            batches.append(tuple(rows))
            rows = []
        rows.append(index)
    return [*batches, tuple(rows)] if rows else batches


def _policy_segment(sample: TrainSample, denominator: Denominator, ref_logprobs: Float32 | None) -> _PolicySegment:
    n_prompt, n_response = len(sample.prompt_ids), len(sample.response_ids)
    if n_prompt == 0 or n_response == 0:
        raise ValueError(f"prompt {sample.prompt_id!r}: {n_prompt} prompt and {n_response} response tokens, need both")
    old = sample.sampler_logprobs if sample.old_logprobs is None else sample.old_logprobs
    ref = np.zeros(n_response, np.float32) if ref_logprobs is None else ref_logprobs
    for name, array in (("sampler", sample.sampler_logprobs), ("old", old), ("reference", ref)):
        if len(array) != n_response:
            raise ValueError(f"prompt {sample.prompt_id!r}: {len(array)} {name} logprobs for {n_response} tokens")
    # The first response token is predicted at the prompt's last position.
    first = n_prompt - 1

    def placed(values: Float32 | float) -> Float32:
        row = np.zeros(first + n_response, np.float32)
        row[first:] = values
        return row

    token_ids = np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int32, copy=False)
    return _PolicySegment(
        token_ids=token_ids[:-1],
        targets=token_ids[1:],
        mask=placed(1.0),
        weights=placed(1.0 / n_response if denominator == "response" else 1.0),
        advantages=placed(sample.advantage if sample.token_advantages is None else sample.token_advantages),
        old_logprobs=placed(old),
        sampler_logprobs=placed(sample.sampler_logprobs),
        ref_logprobs=placed(ref),
    )


def _segment(token_ids: Int32, trained: Int32 | None) -> _Segment:
    mask = np.ones(len(token_ids), np.float32) if trained is None else trained.astype(np.float32)
    if len(mask) != len(token_ids):
        raise ValueError(f"{len(mask)} marks for {len(token_ids)} tokens")
    # position t is trained if token t+1 is
    return _Segment(token_ids, np.append(token_ids[1:], np.int32(0)), np.append(mask[1:], np.float32(0.0)))


def _micro_batch(kind: type[M], segments: Sequence[_Segment], indices: tuple[int, ...]) -> M:
    """Lay segments end to end; without any, one dummy token that nothing is trained on."""
    lengths = np.array([len(segment.token_ids) for segment in segments] or [1], np.int64)
    tensors = {}
    for name in [
        f.name for f in fields(kind) if f.name not in ("position_ids_T", "segment_lengths_S", "sample_index_S")
    ]:
        arrays = [getattr(segment, name.removesuffix("_T")) for segment in segments] or [np.zeros(1, np.float32)]
        tensors[name] = torch.from_numpy(np.concatenate(arrays))
    tensors |= {name: tensors[name].long() for name in ("token_ids_T", "targets_T")}
    return kind(
        position_ids_T=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        segment_lengths_S=torch.from_numpy(lengths),
        sample_index_S=indices,
        **tensors,
    )
