"""Train the tokenizer on the collected text, and turn the text into token shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts import TextSet, TokenizerDir, TokenShards
from framework.data.readers import read_documents
from framework.data.shards import write_shards
from framework.data.tokenizer import TokenizerConfig, train_tokenizer
from framework.graph.nodes import Runtime


@dataclass(frozen=True)
class TokenizerInputs:
    """What the tokenizer learns from."""

    text: TextSet


@dataclass(frozen=True)
class TrainedTokenizer:
    """The result."""

    tokenizer: TokenizerDir


@dataclass(frozen=True)
class TrainTokenizer:
    """The stage: a byte-level BPE of the model's vocabulary."""

    config: TokenizerConfig
    context: int

    def run(self, inputs: TokenizerInputs, runtime: Runtime) -> TrainedTokenizer:
        """Train on the first `train_documents` documents."""
        directory = runtime.artifact_dir("tokenizer")
        documents = read_documents(inputs.text.path / "train.jsonl")
        texts = (doc.text for doc in itertools.islice(documents, self.config.train_documents))
        size = train_tokenizer(texts, self.config, directory, self.context)
        runtime.tracker.progress(1, 1, f"{size} tokens")
        return TrainedTokenizer(TokenizerDir(directory))


@dataclass(frozen=True)
class TokenizeInputs:
    """Text and the tokenizer that splits it."""

    text: TextSet
    tokenizer: TokenizerDir


@dataclass(frozen=True)
class Tokenized:
    """The result."""

    shards: TokenShards


@dataclass(frozen=True)
class Tokenize:
    """The stage: documents, each between begin and end token, as one stream a split."""

    def run(self, inputs: TokenizeInputs, runtime: Runtime) -> Tokenized:
        """Encode both splits."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(inputs.tokenizer.path)
        directory = runtime.artifact_dir("shards")
        splits = {split: _encoded(inputs.text.path / f"{split}.jsonl", tokenizer) for split in ("train", "validation")}
        meta = write_shards(directory, dict(splits), len(tokenizer))
        runtime.tracker.progress(1, 1, f"{meta.tokens['train']:,} tokens")
        return Tokenized(TokenShards(directory))


def _encoded(file: Path, tokenizer: Any, batch: int = 1000) -> Iterator[list[int]]:
    texts = (document.text for document in read_documents(file))
    while chunk := list(itertools.islice(texts, batch)):
        for ids in tokenizer(chunk)["input_ids"]:
            yield [*ids, tokenizer.eos_token_id]
