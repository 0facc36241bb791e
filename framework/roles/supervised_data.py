"""What a supervised run trains on, by optimizer step, and the objective that learns it.

A feed depends on the seed and the step alone, so that any rank can resume anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from framework.data.chat_shards import ChatRows
from framework.data.judged import Judged, JudgedRows
from framework.data.shards import RowBatch, TokenRows
from framework.engines.batch_schedule import BatchSchedule
from framework.errors import UserError
from framework.objectives.lm import DocumentLm, Documents, StreamLm
from framework.objectives.objective import Objective
from framework.objectives.preference import PreferenceObjective
from framework.objectives.preference_rows import PreferenceRows, reference_of

if TYPE_CHECKING:
    from framework.engines.trainer import Trainer

REFERENCE = "reference.npy"  # in a stage's directory: log-probability of every answer, those to train on first


class Feed(Protocol):
    """Opened data, on one rank: batches as `objective` takes them."""

    objective: Objective[Any, Any]
    vocab_size: int  # of the tokenizer that made it
    held_out: Any  # a batch that is not trained on; None: nothing was set apart

    def batch(self, step: int) -> Any:
        """What optimizer step `step`, from 0, trains on."""
        ...

    def begin(self, trainer: Trainer[Any, Any], work_dir: Path) -> None:
        """Compute once what the data needs of the first weights, which `trainer` has; a collective."""
        return


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
    """Judged answers, for a reward model or a policy."""

    shards: Path  # train/, and validation/ where some are set apart
    objective: Objective[Any, Any]
    per_step: int  # prompts
    epochs: int

    def open(self, seed: int) -> Feed:
        """Map the files; raises UserError if one is missing or damaged."""
        return _JudgedFeed(self, seed)


class _RowFeed(Feed):
    def __init__(self, data: RowData, seed: int) -> None:
        self.objective: Objective[Any, Any] = StreamLm()
        self._batches, row_tokens = data.batches, data.batches.row_tokens
        self._rows = TokenRows(data.shards, "train", row_tokens, seed)
        held_out = TokenRows(data.shards, "validation", row_tokens, seed=0)
        self.held_out: Any = torch.from_numpy(held_out.head(data.validation_rows))
        self.vocab_size = self._rows.vocab_size

    def batch(self, step: int) -> RowBatch:
        return RowBatch(self._rows, self._batches.first_row(step), self._batches.rows_at(step))


class _ChatFeed(Feed):
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


class _JudgedFeed(Feed):
    def __init__(self, data: JudgedData, seed: int) -> None:
        self.objective = data.objective
        self._data, self._rows = data, JudgedRows(data.shards / "train", seed)
        self.held_out: Any = None
        if (held_out := data.shards / "validation").is_dir():
            rows = JudgedRows(held_out, 0)
            self.held_out = [self._completed(rows, prompt) for prompt in range(rows.prompts)]
        self.vocab_size = self._rows.vocab_size
        self._reference: dict[int, tuple[float, ...]] = {}  # of each prompt's answers

    def batch(self, step: int) -> list[Judged]:
        first, end = step * self._data.per_step, self._data.epochs * self._rows.prompts
        places = map(self._rows.place, range(first, min(first + self._data.per_step, end)))
        return [replace(self._completed(self._rows, p), reference=self._reference.get(p, ())) for p in places]

    def begin(self, trainer: Trainer[Any, Any], work_dir: Path) -> None:
        """Every answer's log-probability under the first weights; kept, as later starts of the stage have others."""
        preference = self._preference
        if preference is None or not preference.reference:
            return
        train = [self._completed(self._rows, prompt) for prompt in range(self._rows.prompts)]
        file, judged = work_dir / REFERENCE, [*train, *(self.held_out or ())]
        ends = np.cumsum([0, *(len(one.rows) for one in judged)])
        if file.is_file():
            found = np.load(file)
        else:
            per_call = self._data.per_step
            found = np.concatenate(
                [trainer.measure(judged[at : at + per_call], reference_of) for at in range(0, len(judged), per_call)]
            )
            if trainer.engine.rank == 0:
                np.save(building := file.with_suffix(".tmp.npy"), found)
                building.replace(file)
        if len(found) != ends[-1]:
            raise UserError(str(file), f"{len(found)} answers", f"must have the data's {ends[-1]}: delete it")
        known = [tuple(found[ends[i] : ends[i + 1]].tolist()) for i in range(len(judged))]
        self._reference = dict(enumerate(known[: len(train)]))
        if self.held_out is not None:
            self.held_out = [replace(one, reference=known[len(train) + i]) for i, one in enumerate(self.held_out)]

    @property
    def _preference(self) -> PreferenceObjective | None:
        return self.objective.preference if isinstance(self.objective, PreferenceRows) else None

    def _completed(self, rows: JudgedRows, prompt: int) -> Judged:
        """A prompt's answers, and where the objective wants one, the answer to the prompt before it in the files."""
        judged, preference = rows.read(prompt), self._preference
        if preference is None or not preference.unrelated:
            return judged
        return judged.with_unrelated(rows.read((prompt - 1) % rows.prompts))
