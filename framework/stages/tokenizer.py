"""Train the tokenizer on the collected text, and turn the text into token shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.artifacts import PromptSet, TextSet, TokenizerDir, TokenShards
from framework.bounds import Probability, bounded
from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.control import ControlTokens
from framework.data.fim import combined_tokens, cut_for_fim, fim_ids, fim_marks, split_combined
from framework.data.readers import read_documents, read_prompts, read_rows
from framework.data.shards import write_shards
from framework.data.shuffle import sampled
from framework.data.templates import R1_ZERO_CHAT_TEMPLATE
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
from framework.data.tokenizer_training import TokenizerConfig, train_tokenizer
from framework.errors import UserError
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
    max_vocab: int  # the model's

    def __post_init__(self) -> None:
        if self.config.vocab_size > self.max_vocab:
            allowed = f"must be at most model.vocab_size={self.max_vocab}"
            raise UserError("stage.tokenizer.vocab_size", self.config.vocab_size, allowed)

    def run(self, inputs: TokenizerInputs, runtime: Runtime) -> TrainedTokenizer:
        """Train on `train_documents` of all documents, drawn by the seed: a corpus stands file by file."""
        directory, file = runtime.artifact_dir("tokenizer"), inputs.text.path / "train.jsonl"
        size = sum(1 for _ in read_rows(file))
        drawn = sampled(read_documents(file), size, self.config.train_documents, runtime.seed)
        texts = (document.text for document in drawn)
        size = train_tokenizer(texts, self.config, directory, self.context, R1_ZERO_CHAT_TEMPLATE)
        runtime.tracker.progress(1, 1, f"{size} tokens")
        return TrainedTokenizer(TokenizerDir(directory))


@dataclass(frozen=True)
class TokenizeInputs:
    """Text, the tokenizer that splits it, and the prompts that later stages will sample from."""

    text: TextSet
    tokenizer: TokenizerDir
    prompts: PromptSet | None = None


@dataclass(frozen=True)
class Tokenized:
    """The result."""

    shards: TokenShards


@dataclass(frozen=True)
@bounded
class TokenizeConfig:
    """What happens to train documents on the way; both are drawn by the seed and the document's id.

    V3 trained with a FIM rate of 0.1 (section 4.1); the models before it had none. The share of split tokens is not
    published.
    """

    fim_rate: Probability = 0.0  # documents rearranged for filling in the middle
    split_rate: Probability = 0.0  # tokens of punctuation and line breaks cut in two


@dataclass(frozen=True)
class Tokenize:
    """The stage: documents, each between begin and end token, as one stream a split.

    Prompts are only checked: one that is too long should not show after days of pretraining. Validation documents
    stay as they are.
    """

    config: TokenizeConfig = TokenizeConfig()
    context: int = 0  # tokens of prompt and response; needed with prompts
    max_new_tokens: int = 1
    template: TemplateConfig = TemplateConfig()  # of the prompts

    def run(self, inputs: TokenizeInputs, runtime: Runtime) -> Tokenized:
        """Encode both splits; raises UserError for a prompt that leaves no room for its response."""
        tokenizer = load_tokenizer(inputs.tokenizer.path)
        if inputs.prompts is not None:
            for split in ("train", "heldout"):
                prompts = read_prompts(inputs.prompts.path / f"{split}.jsonl")
                tokenize_prompts(tokenizer, prompts, self.context, self.max_new_tokens, self.template)
        directory = runtime.artifact_dir("shards")
        configs = {"train": self.config, "validation": TokenizeConfig()}
        splits = {
            split: _encoded(inputs.text.path / f"{split}.jsonl", tokenizer, config, runtime.seed)
            for split, config in configs.items()
        }
        meta = write_shards(directory, dict(splits), vocabulary_size(tokenizer))
        runtime.tracker.progress(1, 1, f"{meta.tokens['train']:,} tokens")
        return Tokenized(TokenShards(directory))


def _encoded(file: Path, tokenizer: Any, config: TokenizeConfig, seed: int, batch: int = 1000) -> Iterator[list[int]]:
    """Token ids of each document. Names of special tokens in a text are text there, not those tokens."""
    halves = combined_tokens(tokenizer) if config.split_rate else {}
    marks = fim_marks(tokenizer.get_vocab()) if config.fim_rate else []
    begin, control = tokenizer("")["input_ids"], ControlTokens(tokenizer)
    documents = read_documents(file)
    while chunk := list(itertools.islice(documents, batch)):
        keys = [f"{seed} {document.id}" for document in chunk]
        cuts = [
            cut_for_fim(document.text, config.fim_rate, key) if marks else (document.text,)
            for document, key in zip(chunk, keys, strict=True)
        ]
        texts = [part for parts in cuts for part in parts]
        encoded = iter(control.encode_plain(texts))
        for key, parts in zip(keys, cuts, strict=True):
            ids = fim_ids(list(itertools.islice(encoded, len(parts))), marks)
            yield [*begin, *split_combined(ids, halves, config.split_rate, key), tokenizer.eos_token_id]
