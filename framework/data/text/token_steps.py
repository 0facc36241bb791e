"""The steps of tokenizing: a sample for the tokenizer's training, and each shard of text as one of token ids."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from framework.bounds import Bound, Probability, bounded
from framework.data.control import ControlTokens
from framework.data.fim import combined_tokens, cut_for_fim, fim_ids, fim_marks, split_combined
from framework.data.shards import write_tokens
from framework.data.shuffle import seed_of
from framework.data.text.shard_files import Document, Done, read_shard, shard_name, whole_file
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size

_TOGETHER = 256  # documents that the tokenizer is given at once


@dataclass(frozen=True)
@bounded
class TokenizeConfig:
    """What happens to train documents on the way; both are drawn by the seed and the document's id.

    V3 trained with a FIM rate of 0.1 (section 4.1); the models before it had none. The share of split tokens is not
    published.
    """

    fim_rate: Probability = 0.0  # documents rearranged for filling in the middle
    split_rate: Probability = 0.0  # tokens of punctuation and line breaks cut in two
    # The mixture: how often each source is in the stream, in the order of data.documents_files; 0.5: half of its
    # documents, 2: all twice, the second time behind everything's first. Empty, or none given for a source: once
    epochs: tuple[Annotated[float, Bound(least=0, most=100)], ...] = ()

    @property
    def passes(self) -> int:
        """How often the corpus is gone through."""
        return max(1, math.ceil(max(self.epochs, default=1.0)))

    def times(self, source: str) -> float:
        """How often the documents of a source are in the stream."""
        place = int(source) if source.isdigit() else 0
        return self.epochs[place - 1] if 1 <= place <= len(self.epochs) else 1.0


@dataclass(frozen=True)
class DrawDocuments:
    """Of each shard the documents at `rows`."""

    directory: Path
    files: tuple[Path, ...]
    rows: tuple[tuple[int, ...], ...]

    def __call__(self, number: int) -> Done:
        """Copy them."""
        name, chosen = shard_name("sample", number), set(self.rows[number])
        with whole_file(self.directory / name) as writer, self.files[number].open("rb") as lines:
            for row, line in enumerate(lines):
                if row in chosen:
                    writer.write(line)
        return Done({name: writer.note()})


@dataclass(frozen=True)
class TokenizeShards:
    """Each shard: the tokens of its documents, each between begin and end token, as one stream."""

    directory: Path
    files: tuple[Path, ...]  # of train, then of validation
    train: int  # shards
    tokenizer: Path
    config: TokenizeConfig  # of train: validation documents stay as they are
    seed: int

    @property
    def size(self) -> int:
        """Tasks: each train shard once a pass, then those of validation."""
        return self.config.passes * self.train + len(self.files) - self.train

    def name(self, number: int) -> str:
        """The file that task `number` makes."""
        trained = self.config.passes * self.train
        split, place = ("train", number) if number < trained else ("validation", number - trained)
        return shard_name(split, place, "bin")

    def __call__(self, number: int) -> Done:
        """Encode a shard, for train those documents of it that this pass has."""
        trains = number < self.config.passes * self.train
        config, (turn, shard) = (self.config, divmod(number, self.train)) if trains else (TokenizeConfig(), (0, 0))
        file = self.files[shard if trains else number - self.config.passes * self.train + self.train]
        with whole_file(self.directory / self.name(number)) as writer:
            documents = _encoded(file, self.tokenizer, config, self.seed, turn)
            tokens = write_tokens(writer, documents, vocabulary_size(_loaded(self.tokenizer).tokenizer))
        split = self.name(number).partition("-")[0]
        return Done({self.name(number): writer.note()}, {f"{split}_tokens": tokens}, {}, (file.name,))


def _encoded(file: Path, directory: Path, config: TokenizeConfig, seed: int, turn: int) -> Iterator[list[int]]:
    """Token ids of each document. Names of special tokens in a text are text there, not those tokens."""
    control = _loaded(directory)
    tokenizer = control.tokenizer
    halves = _halves(directory) if config.split_rate else {}
    marks = fim_marks(tokenizer.get_vocab()) if config.fim_rate else []
    begin = tokenizer("")["input_ids"]
    documents = (found for found in read_shard(file) if turn + _draw(seed, found) < config.times(found.source))
    while chunk := list(itertools.islice(documents, _TOGETHER)):
        keys = [f"{seed} {document.id}{f' {turn}' if turn else ''}" for document in chunk]
        cuts = [
            cut_for_fim(document.text, config.fim_rate, key) if marks else (document.text,)
            for document, key in zip(chunk, keys, strict=True)
        ]
        texts = [part for parts in cuts for part in parts]
        encoded = iter(control.encode_plain(texts))
        for key, parts in zip(keys, cuts, strict=True):
            ids = fim_ids(list(itertools.islice(encoded, len(parts))), marks)
            yield [*begin, *split_combined(ids, halves, config.split_rate, key), tokenizer.eos_token_id]


def _draw(seed: int, document: Document) -> float:
    """A number from 0 to below 1 that the seed and the document's id decide."""
    return seed_of("epochs", seed, document.id) / 2**62


@lru_cache(maxsize=2)
def _loaded(directory: Path) -> ControlTokens:
    return ControlTokens(load_tokenizer(directory))


@lru_cache(maxsize=2)
def _halves(directory: Path) -> dict[int, list[int]]:
    return combined_tokens(_loaded(directory).tokenizer)
