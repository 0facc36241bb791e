"""Judged answers as packed rows, all of a prompt's in one: what reward models and preference objectives share.

Dimensions: S answers of a packed row, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import accumulate
from typing import Any

from framework.data.judged import Judged
from framework.data.packing import pack_documents
from framework.objectives.objective import Share
from framework.types import Int32, MicroBatch


def pack_judged(batch: Sequence[Judged], share: Share, trained: Sequence[Int32] | None = None) -> list[MicroBatch]:
    """Return a rank's rows; `trained` ([T] of 0 and 1 for each answer) marks tokens as `pack_documents` does."""
    rows = [row for judged in batch for row in judged.rows]
    ends = list(accumulate(len(judged.rows) for judged in batch))
    units = [range(end - len(judged.rows), end) for end, judged in zip(ends, batch, strict=True)]
    return pack_documents(rows, share.token_budget, trained=trained, rank=share.rank, ranks=share.ranks, units=units)


def pairs_in(batch: Sequence[Judged], micro: MicroBatch) -> Iterator[tuple[int, int, float, Judged]]:
    """Yield a row's pairs: places of better and worse among its segments, the margin, and whose pair it is."""
    starts = [0, *accumulate(len(judged.rows) for judged in batch)]
    of_row = [place for place, judged in enumerate(batch) for _ in judged.rows]
    places = {row: place for place, row in enumerate(micro.sample_index_S)}
    for at in dict.fromkeys(of_row[row] for row in micro.sample_index_S):
        for better, worse, margin in batch[at].pairs:
            yield places[starts[at] + better], places[starts[at] + worse], margin, batch[at]


def extended(kind: Any, micro: MicroBatch, *more: Any) -> Any:
    """Return the row as another kind, with the fields that it has beyond a MicroBatch's."""
    return kind(*(getattr(micro, field.name) for field in fields(MicroBatch)), *more)


def name_of(batch: Sequence[Judged], index: int) -> str:
    """Name an answer by its prompt's place."""
    of_row = [place for place, judged in enumerate(batch) for _ in judged.rows]
    return f"prompt {of_row[index]}"
