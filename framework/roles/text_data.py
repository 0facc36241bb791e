"""What the models of `job=transformers` learn, each by its own objective, from the same sentences.

A class here is a row's setting `learns`; it opens to a feed (`roles.supervised_data`) of batches for the objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from framework.bounds import Bound, FilledStr, PositiveInt, bounded
from framework.data.masking import Masking
from framework.data.sentences import Sentences
from framework.data.sequences import CodedTexts, Layout, TextSequence, TextSequences
from framework.data.text_tokenizers import control_code, markers, masking_vocabulary
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
from framework.engines.batch_schedule import BatchSchedule
from framework.objectives.distill import Distillation, DistilledLm
from framework.objectives.lm import DocumentLm, Documents
from framework.objectives.mlm import MaskedLm
from framework.objectives.objective import Objective
from framework.objectives.permutation import PermutationLm, PermutedRows
from framework.roles.supervised_data import Data, Feed, RowData


@dataclass(frozen=True)
class Source:
    """Where the sentences lie, and how much of them is a step."""

    shards: Path
    tokenizer: Path
    per_step: int  # sequences
    longest: int  # tokens of a sequence, special ones counted
    held_out: int  # sequences of validation
    teacher: Path | None = None


class Learns(Protocol):
    """A row's setting: what is learned of the sentences."""

    def data(self, source: Source) -> Data:
        """Return what the ranks open."""
        ...


@dataclass(frozen=True)
class Causal:
    """The next token, of rows that documents run through: GPT-2."""

    def data(self, source: Source) -> Data:
        """Rows of the stream."""
        return RowData(source.shards, BatchSchedule(source.per_step, source.longest), source.held_out)


@dataclass(frozen=True)
@bounded
class Masked:
    """Hidden tokens of whole sequences; with layout next or order, how two parts belong together too.

    BERT: next. RoBERTa: full. ALBERT: order, with masking.longest=3.
    """

    layout: Layout = "full"
    masking: Masking = Masking()

    def data(self, source: Source) -> Data:
        """Sequences of sentences."""
        return MaskedData(source, self)


@dataclass(frozen=True)
@bounded
class Distilled:
    """What a teacher's row has learned, of the same sequences as `Masked`: DistilBERT."""

    teacher: FilledStr  # its row, or the directory of a BERT checkpoint
    masking: Masking = Masking()
    weights: Distillation = Distillation()

    def data(self, source: Source) -> Data:
        """Sequences of sentences."""
        return MaskedData(source, Masked("full", self.masking), self.weights)


@dataclass(frozen=True)
@bounded
class Permuted:
    """Some tokens of a row in a random order: XLNet."""

    share: Annotated[float, Bound(above=0, most=1)] = 1 / 6
    longest: PositiveInt = 5

    def data(self, source: Source) -> Data:
        """Rows of the stream."""
        rows = RowData(source.shards, BatchSchedule(source.per_step, source.longest), source.held_out)
        return PermutedData(rows, PermutationLm(self.share, self.longest))


@dataclass(frozen=True)
@bounded
class Coded:
    """The next token of documents behind their domain's control code: CTRL."""

    codes: tuple[str, ...] = ()  # domains of the text; empty: all

    def data(self, source: Source) -> Data:
        """Parts of documents."""
        return CodedData(source, self.codes)


@dataclass(frozen=True)
class MaskedData:
    """Sentences for `MaskedLm`, or with `distillation` for `DistilledLm`."""

    source: Source
    learns: Masked
    distillation: Distillation | None = None

    def open(self, seed: int) -> MaskedFeed:
        """Map the files; raises UserError if one is missing or damaged."""
        return MaskedFeed(self, seed)


class MaskedFeed(Feed):
    """Batches of sequences."""

    def __init__(self, data: MaskedData, seed: int) -> None:
        source, tokenizer = data.source, load_tokenizer(data.source.tokenizer)
        self.vocab_size = vocabulary_size(tokenizer)
        masking, vocabulary = data.learns.masking, masking_vocabulary(tokenizer, self.vocab_size)
        self.objective: Objective[Any, Any] = MaskedLm(masking, vocabulary)
        if data.distillation is not None and source.teacher is not None:
            teacher = frozen_teacher(source.teacher)
            self.objective = DistilledLm(masking, vocabulary, teacher, data.distillation)
        train, held_out = (
            TextSequences(source.shards, split, data.learns.layout, source.longest, number, markers(tokenizer))
            for split, number in (("train", seed), ("validation", 0))
        )
        self._train, self._per_step = train, source.per_step
        self.held_out: Any = held_out.head(source.held_out)

    def batch(self, step: int) -> Sequence[TextSequence]:
        """What optimizer step `step`, from 0, trains on."""
        first = step * self._per_step
        return [self._train.at(place) for place in range(first, first + self._per_step)]


@dataclass(frozen=True)
class PermutedData:
    """Rows for `PermutationLm`."""

    rows: RowData
    objective: PermutationLm

    def open(self, seed: int) -> PermutedFeed:
        """Map the files; raises UserError if one is missing or damaged."""
        return PermutedFeed(self, seed)


class PermutedFeed(Feed):
    """Rows with what seeds their orders."""

    def __init__(self, data: PermutedData, seed: int) -> None:
        self._feed, self._seed, self._batches = data.rows.open(seed), seed, data.rows.batches
        self.objective: Objective[Any, Any] = data.objective
        self.vocab_size, self.held_out = self._feed.vocab_size, PermutedRows(self._feed.held_out, 0, 0)

    def batch(self, step: int) -> PermutedRows:
        """What optimizer step `step`, from 0, trains on."""
        return PermutedRows(self._feed.batch(step), self._seed, self._batches.first_row(step))


@dataclass(frozen=True)
class CodedData:
    """Parts of documents for `DocumentLm`."""

    source: Source
    codes: tuple[str, ...]

    def open(self, seed: int) -> CodedFeed:
        """Map the files; raises UserError if one is missing or damaged."""
        return CodedFeed(self, seed)


class CodedFeed(Feed):
    """Batches of documents behind their codes."""

    def __init__(self, data: CodedData, seed: int) -> None:
        source, tokenizer = data.source, load_tokenizer(data.source.tokenizer)
        self.objective: Objective[Any, Any] = DocumentLm()
        self.vocab_size = vocabulary_size(tokenizer)
        known = tokenizer.get_vocab()
        domains = Sentences(source.shards, "train").sources
        codes = {name: known[control_code(name)] for name in data.codes or domains if control_code(name) in known}
        self._train, held_out = (
            CodedTexts(source.shards, split, source.longest, number, codes)
            for split, number in (("train", seed), ("validation", 0))
        )
        self._per_step = source.per_step
        self.held_out: Any = Documents(held_out.head(source.held_out))

    def batch(self, step: int) -> Documents:
        """What optimizer step `step`, from 0, trains on."""
        first = step * self._per_step
        return Documents([self._train.at(place) for place in range(first, first + self._per_step)])


def frozen_teacher(checkpoint: Path) -> Any:
    """Return the model of a BERT checkpoint, packed and without gradients."""
    from framework.engines.checkpoint import load_hf
    from framework.models.dropout import switch_dropout_off
    from framework.models.packed_attention import use_packed_attention

    model = load_hf(checkpoint, "float32").requires_grad_(False).eval()
    switch_dropout_off(model)
    use_packed_attention(model)
    return model
