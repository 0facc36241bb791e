"""What a supervised run trains on, by optimizer step, and the objective that learns it.

A feed depends on the seed and the step alone, so that any rank can resume anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from framework.data.chat_shards import ChatRows
from framework.data.judged import Judged, JudgedRows
from framework.data.shards import RowBatch, TokenRows
from framework.engines.batch_schedule import BatchSchedule
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from framework.objectives.objective import Objective


class Feed(Protocol):
    """Opened data, on one rank: batches as `objective` takes them."""

    objective: Objective[Any, Any]
    vocab_size: int  # of the tokenizer that made it
    held_out: Any  # a batch that is not trained on; None: nothing was set apart

    def batch(self, step: int) -> Any:
        """What optimizer step `step`, from 0, trains on."""
        ...


class Data(Protocol):
    """Where it lies, and how much of it is a step."""

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        ...


@dataclass(frozen=True)
class RowData:
    """Rows that documents run through, every token learned: pretraining."""

    shards: Path
    batches: BatchSchedule
    validation_rows: int

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        return _RowFeed(self, seed)


@dataclass(frozen=True)
class ChatData:
    """Conversations that do not see each other, of which answers are learned: fine-tuning."""

    shards: Path  # train/, and validation/ where some are set apart
    per_step: int
    epochs: int

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        return _ChatFeed(self, seed)


@dataclass(frozen=True)
class JudgedData:
    """Judged answers, for a reward model."""

    shards: Path  # train/, and validation/ where some are set apart
    objective: Objective[Any, Any]
    per_step: int  # prompts
    epochs: int

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        return _JudgedFeed(self, seed)


class _RowFeed:
    def __init__(self, data: RowData, seed: int) -> None:
        self.objective: Objective[Any, Any] = StreamLm()
        self._batches, row_tokens = data.batches, data.batches.row_tokens
        self._rows = TokenRows(data.shards, "train", row_tokens, seed)
        held_out = TokenRows(data.shards, "validation", row_tokens, seed=0)
        self.held_out: Any = torch.from_numpy(held_out.head(data.validation_rows))
        self.vocab_size = self._rows.vocab_size

    def batch(self, step: int) -> RowBatch:
        return RowBatch(self._rows, self._batches.first_row(step), self._batches.rows_at(step))


class _ChatFeed:
    def __init__(self, data: ChatData, seed: int) -> None:
        self.objective: Objective[Any, Any] = DocumentLm()
        self._data, self._chats = data, ChatRows(data.shards / "train", seed)
        self.held_out: Any = None
        if (held_out := data.shards / "validation").is_dir():
            chats = ChatRows(held_out, 0)
            self.held_out = Documents(*chats.batch(0, chats.meta.chats))
        self.vocab_size = self._chats.meta.vocab_size

    def batch(self, step: int) -> Documents:
        first, end = step * self._data.per_step, self._data.epochs * self._chats.meta.chats
        return Documents(*self._chats.batch(first, min(self._data.per_step, end - first)))


class _JudgedFeed:
    def __init__(self, data: JudgedData, seed: int) -> None:
        self.objective = data.objective
        self._data, self._rows = data, JudgedRows(data.shards / "train", seed)
        self.held_out: Any = None
        if (held_out := data.shards / "validation").is_dir():
            rows = JudgedRows(held_out, 0)
            self.held_out = rows.batch(0, rows.prompts)
        self.vocab_size = self._rows.vocab_size

    def batch(self, step: int) -> list[Judged]:
        first, end = step * self._data.per_step, self._data.epochs * self._rows.prompts
        return self._rows.batch(first, min(self._data.per_step, end - first))
