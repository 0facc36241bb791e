"""The steps of tokenizing: a sample for the tokenizer's training, and each shard of text as one of token ids."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from framework.bounds import Bound, Probability, bounded
from framework.data.control import ControlTokens
from framework.data.fim import combined_tokens, cut_for_fim, fim_ids, fim_marks, split_combined
from framework.data.shards import write_tokens
from framework.data.shuffle import seed_of
from framework.data.text.beside import Died, OneByOne
from framework.data.text.shard_files import MOST_FAILED, Document, Done, read_shard, shard_name, whole_file
from framework.errors import UserError
from framework.files import write_atomically

logger = logging.getLogger("framework.data")
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
    tokenizer: Rules
    config: TokenizeConfig  # of train: validation documents stay as they are
    seed: int
    alone: bool = False  # each document is encoded in a process beside this one

    def careful(self) -> TokenizeShards:
        """Survive documents that kill the process."""
        return replace(self, alone=True)

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
        encoder, failed = Encoder(self.tokenizer, config, self.seed, turn), list[tuple[str, str]]()
        with whole_file(self.directory / self.name(number)) as writer:
            documents = _one_by_one(file, encoder, failed) if self.alone else _together(file, encoder, failed)
            tokens = write_tokens(writer, documents, self.tokenizer.vocab_size)
        split = self.name(number).partition("-")[0]
        counts = {f"{split}_tokens": tokens, **({"dropped.failed": len(failed)} if failed else {})}
        problem = (*failed[0], "must be a document that can be encoded") if failed else None
        return Done({self.name(number): writer.note()}, counts, {}, (file.name,), (), problem)


@dataclass(frozen=True)
class Rules:
    """What encoding needs of a tokenizer, so that a worker loads the small library alone (transformers: seconds)."""

    file: Path  # the tokenizer as `tokenizers` saves it
    begin: tuple[int, ...]
    end: int
    vocab_size: int

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int, file: Path) -> Rules:
        """Write those of a Hugging Face tokenizer to `file`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, tokenizer.backend_tokenizer.to_str())
        return cls(file, tuple(tokenizer("")["input_ids"]), tokenizer.eos_token_id, vocab_size)


@dataclass(frozen=True)
class Encoder:
    """Documents of one pass to token ids. Names of special tokens in a text are text there, not those tokens."""

    rules: Rules
    config: TokenizeConfig
    seed: int
    turn: int

    def wants(self, document: Document) -> bool:
        """Whether this pass has the document."""
        return self.turn + _draw(self.seed, document) < self.config.times(document.source)

    def encode(self, documents: Sequence[Document]) -> Iterator[list[int]]:
        """Yield the ids of each."""
        config, turn, tokenizer = self.config, self.turn, _loaded(self.rules.file)
        halves = _halves(self.rules.file) if config.split_rate else {}
        marks = fim_marks(tokenizer.get_vocab()) if config.fim_rate else []
        keys = [f"{self.seed} {document.id}{f' {turn}' if turn else ''}" for document in documents]
        cuts = [
            cut_for_fim(document.text, config.fim_rate, key) if marks else (document.text,)
            for document, key in zip(documents, keys, strict=True)
        ]
        encoded = iter(tokenizer.control.encode_plain([part for parts in cuts for part in parts]))
        for key, parts in zip(keys, cuts, strict=True):
            ids = fim_ids(list(itertools.islice(encoded, len(parts))), marks)
            yield [*self.rules.begin, *split_combined(ids, halves, config.split_rate, key), self.rules.end]


def check_encoded(shards: Sequence[Done], documents: int) -> None:
    """Raise UserError for the first document that can't be encoded, if they are too many; else say how many."""
    failed = sum(done.counts.get("dropped.failed", 0) for done in shards)
    problem = next((done.problem for done in shards if done.problem), None)
    if problem is None:
        return
    error = UserError(*problem)
    if failed > MOST_FAILED * documents:
        raise error
    logger.warning("%d of %d documents can't be encoded and were left out; the first: %s", failed, documents, error)


def _together(file: Path, encoder: Encoder, failed: list[tuple[str, str]]) -> Iterator[list[int]]:
    """Encode all documents of a shard, many at once; those that fail are noted with their place."""
    wanted = ((row, found) for row, found in enumerate(read_shard(file), start=1) if encoder.wants(found))
    while chunk := list(itertools.islice(wanted, _TOGETHER)):
        try:
            yield from list(encoder.encode([document for _, document in chunk]))
        except UserError:
            raise
        except BaseException as error:  # a panic of `tokenizers` is no Exception
            _raise_stop(error)
            for row, document in chunk:
                try:
                    yield from list(encoder.encode([document]))
                except BaseException as of_it:
                    _raise_stop(of_it)
                    failed.append((f"{file}:{row}", f"{type(of_it).__name__}: {of_it}"))


def _one_by_one(file: Path, encoder: Encoder, failed: list[tuple[str, str]]) -> Iterator[list[int]]:
    """As `_together`, each document in a process beside this one: it may be that it kills it."""
    with OneByOne() as beside:
        for row, document in enumerate(read_shard(file), start=1):
            if encoder.wants(document):
                try:
                    yield beside.of(f"{file}:{row}", _encoded, encoder, document)
                except (UserError, OSError):
                    raise
                except (Died, Exception) as error:
                    failed.append((f"{file}:{row}", f"{type(error).__name__}: {error}"))


def _encoded(encoder: Encoder, document: Document) -> list[int]:
    (ids,) = encoder.encode([document])
    return ids


def _raise_stop(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error


def _draw(seed: int, document: Document) -> float:
    """A number from 0 to below 1 that the seed and the document's id decide."""
    return seed_of("epochs", seed, document.id) / 2**62


class _Loaded:
    """A tokenizer, as far as encoding asks for what transformers calls so."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self.backend_tokenizer = Tokenizer.from_file(str(file))
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self.control = ControlTokens(self)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend_tokenizer.get_vocab())

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)


@lru_cache(maxsize=2)
def _loaded(file: Path) -> _Loaded:
    return _Loaded(file)


@lru_cache(maxsize=2)
def _halves(file: Path) -> dict[int, list[int]]:
    return combined_tokens(_loaded(file))
