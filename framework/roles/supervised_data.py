"""What a supervised run trains on, by optimizer step: rows of a token stream, or whole conversations.

A feed depends on the seed and the step alone, so that any rank can resume anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from framework.data.chats import ChatRows
from framework.data.shards import RowBatch, TokenRows
from framework.engines.batch_schedule import BatchSchedule
from framework.engines.lm_trainer import DeepSpeedTrainer
from framework.types import StepResult


class Feed(Protocol):
    """Opened data, on one rank."""

    vocab_size: int  # of the tokenizer that made it

    def train(self, trainer: DeepSpeedTrainer, step: int) -> StepResult:
        """Take optimizer step `step`, from 0."""
        ...

    def validation_loss(self, trainer: DeepSpeedTrainer) -> float | None:
        """Mean loss in nats on what is not trained on; None if nothing was set apart."""
        ...


@dataclass(frozen=True)
class RowData:
    """Rows that documents run through, every token learned: pretraining."""

    shards: Path
    batches: BatchSchedule
    validation_rows: int
    isolated = False  # documents of a row see each other

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        return _RowFeed(self, seed)


@dataclass(frozen=True)
class ChatData:
    """Conversations that do not see each other, of which answers are learned: fine-tuning."""

    shards: Path  # train/, and validation/ where some are set apart
    per_step: int
    epochs: int
    isolated = True

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        return _ChatFeed(self, seed)


class _RowFeed:
    def __init__(self, data: RowData, seed: int) -> None:
        self._batches, row_tokens = data.batches, data.batches.row_tokens
        self._rows = TokenRows(data.shards, "train", row_tokens, seed)
        held_out = TokenRows(data.shards, "validation", row_tokens, seed=0)
        self._held_out = torch.from_numpy(held_out.head(data.validation_rows))
        self.vocab_size = self._rows.vocab_size

    def train(self, trainer: DeepSpeedTrainer, step: int) -> StepResult:
        first, size = self._batches.first_row(step), self._batches.rows_at(step)
        return trainer.train_minibatch(RowBatch(self._rows, first, size))

    def validation_loss(self, trainer: DeepSpeedTrainer) -> float | None:
        return trainer.validation_loss(self._held_out)


class _ChatFeed:
    def __init__(self, data: ChatData, seed: int) -> None:
        self._data, self._chats = data, ChatRows(data.shards / "train", seed)
        held_out = data.shards / "validation"
        self._held_out = ChatRows(held_out, 0) if held_out.is_dir() else None
        self.vocab_size = self._chats.meta.vocab_size

    def train(self, trainer: DeepSpeedTrainer, step: int) -> StepResult:
        first, end = step * self._data.per_step, self._data.epochs * self._chats.meta.chats
        return trainer.train_documents(*self._chats.batch(first, min(self._data.per_step, end - first)))

    def validation_loss(self, trainer: DeepSpeedTrainer) -> float | None:
        if self._held_out is None:
            return None
        return trainer.validation_loss_of_documents(*self._held_out.batch(0, self._held_out.meta.chats))
