"""A tokenizer of a transformer's kind from text, and the text as sentences of its tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from framework.artifacts import TextSet, TokenizerDir, TokenShards
from framework.data.control import ControlTokens
from framework.data.sentences import EncodedDocument, source_of, split_sentences, write_sentences
from framework.data.shuffle import sampled
from framework.data.text.shard_files import Document, read_text, train_sizes
from framework.data.text_tokenizers import TextTokenizerConfig, control_code, separator, train_text_tokenizer
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
from framework.graph.nodes import Runtime
from framework.stages.tokenizer import TokenizerInputs, TrainedTokenizer

BATCH = 1000  # documents


@dataclass(frozen=True)
class TrainTextTokenizer:
    """The stage; `longest`: of the models that take it, the shortest context."""

    config: TextTokenizerConfig
    longest: int

    def run(self, inputs: TokenizerInputs, runtime: Runtime) -> TrainedTokenizer:
        """Train on `train_documents` of all documents, drawn by the seed."""
        directory, text, config = runtime.artifact_dir("tokenizer"), inputs.text.path, self.config
        drawn = sampled(read_text(text, "train"), sum(train_sizes(text)), config.train_documents, runtime.seed)
        texts = (found.text for found in drawn)
        codes = sorted({control_code(source_of(found)) for found in read_text(text, "train")} if config.codes else ())
        size = train_text_tokenizer(texts, config, directory, self.longest, codes)
        runtime.tracker.progress(1, 1, f"{size} tokens")
        return TrainedTokenizer(TokenizerDir(directory))


@dataclass(frozen=True)
class SentenceInputs:
    """Text, and the tokenizer that splits it."""

    text: TextSet
    tokenizer: TokenizerDir


@dataclass(frozen=True)
class TokenizedSentences:
    """Both splits, as `data.sentences` lays them out."""

    shards: TokenShards


@dataclass(frozen=True)
class TokenizeSentences:
    """The stage. Names of special tokens in a text are text there, not those tokens."""

    def run(self, inputs: SentenceInputs, runtime: Runtime) -> TokenizedSentences:
        """Encode both splits sentence by sentence."""
        tokenizer, directory = load_tokenizer(inputs.tokenizer.path), runtime.artifact_dir("shards")
        splits = {split: _encoded(read_text(inputs.text.path, split), tokenizer) for split in ("train", "validation")}
        meta = write_sentences(directory, dict(splits), vocabulary_size(tokenizer), separator(tokenizer))
        runtime.tracker.progress(1, 1, f"{meta.tokens('train'):,} tokens")
        return TokenizedSentences(TokenShards(directory))


def _encoded(documents: Iterator[Document], tokenizer: Any) -> Iterator[EncodedDocument]:
    control = ControlTokens(tokenizer)
    while chunk := list(itertools.islice(documents, BATCH)):
        parts = [_pieces(document) for document in chunk]
        encoded = iter(control.encode_plain([text for texts in parts for text in texts]))
        for document, texts in zip(chunk, parts, strict=True):
            yield EncodedDocument(source_of(document), list(itertools.islice(encoded, len(texts))))


def _pieces(document: Document) -> list[str]:
    """Its sentences, each with the blank that parts it from the one before: byte-level tokens carry it."""
    first, *others = split_sentences(document.text) or [document.text]
    return [first, *(f" {sentence}" for sentence in others)]
