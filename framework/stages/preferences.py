"""Judged answers for reward models: a user's own file, split; and those answers as tokens of a base model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from framework.artifacts import Checkpoint, PreferenceSet, TokenizerDir, TokenShards
from framework.bounds import Bound, NonNegativeFloat, Probability, bounded
from framework.data.chat_encoding import encode_chat
from framework.data.chat_shards import Chat, Message
from framework.data.chat_template import ChatTemplate, TemplateConfig
from framework.data.judged import Judged, write_judged
from framework.data.layouts.columns import Columns
from framework.data.layouts.preferences import Labelled, Preference, load_labelled, load_preferences
from framework.data.readers import write_rows
from framework.data.sources import find_source
from framework.data.tasks import split_of
from framework.data.tokenizer_files import copy_files, load_tokenizer, vocabulary_size, write_template
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs
from framework.types import Int32

Kind = Literal["pairwise", "pointwise"]
_CHECKED = 256  # answers that a plan encodes


@dataclass(frozen=True)
@bounded
class PreferencesConfig:
    """Judged answers in any of the layouts of `data.layouts.preferences`: a file, glob, folder or hub data set."""

    train: str | None = None
    columns: Columns = field(default_factory=dict)  # our name -> the file's
    validation_share: Probability = 0.05  # of the prompts, by hash of their text: equal ones stay together
    least_margin: NonNegativeFloat = 0.0  # pairs of a smaller margin are left out; those without one have 0
    # of the longer answer's characters to the shorter's, above which a pair is left out; null: any
    longest_ratio: Annotated[float, Bound(least=1)] | None = None

    def read(self, kind: Kind) -> Iterator[Preference | Labelled]:
        """Yield what was judged; raises UserError naming file and line, or if nothing is given."""
        if self.train is None:
            raise UserError("data.train", None, "must name a file, glob, folder or hub data set of preferences")
        if kind == "pairwise":
            yield from filter(self.keeps, load_preferences(self.train, self.columns))
        else:
            yield from load_labelled(self.train, self.columns)

    def keeps(self, one: Preference) -> bool:
        """Whether a pair's margin is large enough, and its answers of comparable length."""
        lengths = sorted(len(str(answer.get("content") or "")) for answer in answers_of(one))
        comparable = self.longest_ratio is None or lengths[1] <= self.longest_ratio * max(lengths[0], 1)
        return one.margin >= self.least_margin and comparable

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        return () if self.train is None else find_source(self.train, "data.train").local

    def split(self, one: Preference | Labelled) -> str:
        """Return "train" or "heldout"."""
        return split_of(prompt_text(one.messages), self.validation_share)

    def count_train(self, kind: Kind) -> int:
        """Read the file and return how many prompts are trained on (of labelled answers: how many answers).

        Raises UserError naming a bad line, or if a side has none.
        """
        judged = list(self.read(kind))
        if not judged:
            allowed = "has no two answers of which one is better: rankings of ties alone, or too small a margin for all"
            raise UserError("data.train", self.train, allowed)
        check_orders(one for one in judged if isinstance(one, Preference))
        train = [one for one in judged if self.split(one) == "train"]
        found = len({prompt_text(one.messages) for one in train}) if kind == "pairwise" else len(train)
        if not found:
            raise UserError("data.validation_share", self.validation_share, "leaves nothing to train on")
        return found

    def check(self, kind: Kind, base: Path, config: TemplateConfig) -> None:
        """Encode the first answers before a run starts; the stage does so with all.

        Raises UserError if the base's tokenizer is not what its files say, or an answer does not fit the template.
        """
        template = ChatTemplate(load_tokenizer(base), config)
        for one in itertools.islice(self.read(kind), _CHECKED):
            for answer in answers_of(one):
                encode_answer(template, one.messages, answer, one.id)


def prompt_text(messages: tuple[Message, ...]) -> str:
    """Return what tells prompts apart."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def check_orders(pairs: Iterable[Preference]) -> None:
    """Raise UserError, naming both rows, for two answers each of which is said to be better than the other."""
    seen: dict[tuple[str, str, str], str] = {}
    for one in pairs:
        chosen, rejected = (json.dumps(answer, sort_keys=True) for answer in answers_of(one))
        prompt = prompt_text(one.messages)
        if other := seen.get((prompt, rejected, chosen)):
            allowed = f"{other} says the opposite of the same two answers: keep one of them"
            raise UserError(one.id, "chosen and rejected", allowed)
        seen[prompt, chosen, rejected] = one.id


def answers_of(one: Preference | Labelled) -> tuple[Message, ...]:
    """Return the answers of a row."""
    return (one.chosen, one.rejected) if isinstance(one, Preference) else (one.answer,)


@dataclass(frozen=True)
class EncodedAnswer:
    """Prompt [5 6] and answer [7 1], of which 1 ends it: row 5 6 7 1, start 2."""

    row: Int32  # [T]
    start: int  # where the answer begins


def encode_answer(template: ChatTemplate, messages: tuple[Message, ...], answer: Message, where: str) -> EncodedAnswer:
    """Return prompt and answer up to the token that ends it, where a sampled answer ends too."""
    encoded = encode_chat(template, Chat(where, (*messages, answer), where=where))
    end = int(np.flatnonzero(encoded.learned)[-1]) + 1
    before = np.flatnonzero(encoded.learned[:end] == 0)  # earlier answers of the conversation are learned too
    return EncodedAnswer(encoded.token_ids[:end], int(before[-1]) + 1 if len(before) else 0)


@dataclass(frozen=True)
class CollectedPreferences:
    """train.jsonl, and validation.jsonl if prompts are set apart."""

    preferences: PreferenceSet


@dataclass(frozen=True)
class CollectPreferences:
    """The stage that splits the file."""

    config: PreferencesConfig
    kind: Kind

    def run(self, inputs: NoInputs, runtime: Runtime) -> CollectedPreferences:
        """Write both splits in the file's order."""
        directory, counts = runtime.artifact_dir("preferences"), dict[str, int]()
        for split, side in (("train", "train"), ("validation", "heldout")):
            rows = (one.row for one in self.config.read(self.kind) if self.config.split(one) == side)
            counts[split] = write_rows(directory / f"{split}.jsonl", rows)
        if not counts["validation"]:
            (directory / "validation.jsonl").unlink()
        runtime.tracker.progress(1, 1, f"{counts['train']} judged, {counts['validation']} set apart")
        return CollectedPreferences(PreferenceSet(directory))


@dataclass(frozen=True)
class EncodePreferencesInputs:
    """Judged answers, and the base model whose tokenizer splits them."""

    base: Checkpoint
    preferences: PreferenceSet


@dataclass(frozen=True)
class EncodedPreferences:
    """Tokens by split, and the tokenizer with the template that they are in."""

    shards: TokenShards
    tokenizer: TokenizerDir


@dataclass(frozen=True)
class EncodePreferences:
    """The stage that tokenizes them: all answers to a prompt are one element, with every pair that was judged."""

    max_tokens: int  # of an answer with its prompt
    token_budget: int  # which all answers to a prompt must fit
    kind: Kind
    template: TemplateConfig = TemplateConfig()

    def run(self, inputs: EncodePreferencesInputs, runtime: Runtime) -> EncodedPreferences:
        """Encode every split there is; raises UserError for an answer too long, or that does not fit the template."""
        tokenizer = load_tokenizer(inputs.base.path)
        template, size = ChatTemplate(tokenizer, self.template), vocabulary_size(tokenizer)
        shards, saved = runtime.artifact_dir("shards"), runtime.artifact_dir("tokenizer")
        tokens = 0
        for file in (inputs.preferences.path / f"{split}.jsonl" for split in ("train", "validation")):
            if not file.is_file():
                continue
            (shards / file.stem).mkdir()

            def encode(messages: tuple[Message, ...], answer: Message, where: str) -> EncodedAnswer:
                return self._checked(encode_answer(template, messages, answer, where), where)

            judged = (pairs_of if self.kind == "pairwise" else labels_of)(file, encode)
            tokens += write_judged(shards / file.stem, map(self._fitting, judged), size).tokens
        copy_files(inputs.base.path, saved)
        if self.template.name:
            write_template(saved, template.source)
        runtime.tracker.progress(1, 1, f"{tokens:,} tokens")
        return EncodedPreferences(TokenShards(shards), TokenizerDir(saved))

    def _checked(self, encoded: EncodedAnswer, where: str) -> EncodedAnswer:
        if len(encoded.row) > self.max_tokens:
            allowed = f"must be at most {self.max_tokens}: the least of the training stage's max_tokens, "
            allowed += "engine.learner.token_budget and model.max_position_embeddings"
            raise UserError(f"{where}: tokens", len(encoded.row), allowed)
        return encoded

    def _fitting(self, judged: Judged) -> Judged:
        if (tokens := sum(map(len, judged.rows))) > self.token_budget:
            allowed = f"must be at most engine.learner.token_budget={self.token_budget}: one batch element"
            raise UserError(f"{len(judged.rows)} answers to a prompt: tokens", tokens, allowed)
        return judged


Encode = Callable[[tuple[Message, ...], Message, str], EncodedAnswer]


def pairs_of(file: Path, encode: Encode) -> Iterator[Judged]:
    """Yield the judged pairs of a PreferenceSet's file, by prompt: an answer that is in several pairs is one row.

    Raises UserError for two answers each of which is said to be better than the other.
    """
    of_prompt: dict[str, list[Preference]] = {}
    for one in load_preferences(str(file)):
        of_prompt.setdefault(prompt_text(one.messages), []).append(one)
    for found in of_prompt.values():
        places, answers, pairs = dict[str, int](), list[EncodedAnswer](), dict[tuple[int, int], float]()
        for one in found:
            for answer in answers_of(one):
                if (key := json.dumps(answer, sort_keys=True)) not in places:
                    places[key] = len(answers)
                    answers.append(encode(one.messages, answer, one.id))
            better, worse = (places[json.dumps(answer, sort_keys=True)] for answer in answers_of(one))
            if (worse, better) in pairs:
                raise UserError(one.id, "chosen and rejected", "another row of the same prompt says the opposite")
            pairs[better, worse] = max(one.margin, pairs.get((better, worse), 0.0))
        judged = tuple((*pair, margin) for pair, margin in pairs.items())
        yield Judged(tuple(one.row for one in answers), judged, starts=tuple(one.start for one in answers))


def labels_of(file: Path, encode: Encode) -> Iterable[Judged]:
    """Yield the labelled answers of a PreferenceSet's file."""
    for one in load_labelled(str(file)):
        encoded = encode(one.messages, one.answer, one.id)
        yield Judged((encoded.row,), labels=(one.label,), starts=(encoded.start,))
