"""Train the tokenizer on the collected text, and turn the text into token shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from framework.artifacts import PromptSet, TextSet, TokenizerDir, TokenShards, read_listing
from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.readers import read_prompts
from framework.data.shards import TokenFile, write_meta
from framework.data.shuffle import sampled
from framework.data.templates import R1_ZERO_CHAT_TEMPLATE
from framework.data.text.shard_files import read_text, text_files, train_sizes, write_listing
from framework.data.text.token_steps import DrawDocuments, Rules, TokenizeConfig, TokenizeShards, check_encoded
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
from framework.data.tokenizer_training import TokenizerConfig, train_tokenizer
from framework.errors import UserError
from framework.files import link_or_copy
from framework.graph.nodes import Runtime
from framework.stages.shard_runs import run_shards


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

    keeps_work: ClassVar[bool] = False  # the artifacts have all that stays
    config: TokenizerConfig
    context: int
    max_vocab: int  # the model's

    def __post_init__(self) -> None:
        if self.config.vocab_size > self.max_vocab:
            allowed = f"must be at most model.vocab_size={self.max_vocab}"
            raise UserError("stage.tokenizer.vocab_size", self.config.vocab_size, allowed)

    def run(self, inputs: TokenizerInputs, runtime: Runtime) -> TrainedTokenizer:
        """Train on `train_documents` of all documents, drawn by the seed: a corpus stands file by file."""
        directory = runtime.artifact_dir("tokenizer")
        draw = self._draw(inputs.text.path, runtime)
        run_shards(draw, len(draw.files), runtime, "shards sampled")
        texts = (document.text for document in read_text(draw.directory, "sample"))
        size = train_tokenizer(texts, self.config, directory, self.context, R1_ZERO_CHAT_TEMPLATE)
        runtime.tracker.progress(1, 1, f"{size} tokens")
        return TrainedTokenizer(TokenizerDir(directory))

    def _draw(self, text: Path, runtime: Runtime) -> DrawDocuments:
        """Which documents of each shard are learned from: places in the whole corpus, however it is cut."""
        files = text_files(text, "train")
        sizes = train_sizes(text)
        drawn = np.fromiter(sampled(range(sum(sizes)), sum(sizes), self.config.train_documents, runtime.seed), np.int64)
        ends = np.cumsum(sizes)
        owner = np.searchsorted(ends, drawn, side="right")
        begins = ends - sizes
        rows = tuple(tuple((drawn[owner == n] - begins[n]).tolist()) for n in range(len(files)))
        return DrawDocuments(runtime.work_dir / "sample", tuple(files), rows)


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
class Tokenize:
    """The stage: documents, each between begin and end token, as one stream a split.

    Prompts are only checked: one that is too long should not show after days of pretraining. Validation documents
    stay as they are.
    """

    keeps_work: ClassVar[bool] = False  # the artifacts have all that stays
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
        directory, text = runtime.artifact_dir("shards"), inputs.text.path
        files = {split: text_files(text, split) for split in ("train", "validation")}
        everything = (*files["train"], *files["validation"])
        work = runtime.work_dir / "tokens"
        rules = Rules.of(tokenizer, vocabulary_size(tokenizer), work / "tokenizer.json")
        tokenize = TokenizeShards(work, everything, len(files["train"]), rules, self.config, runtime.seed)
        done = run_shards(tokenize, tokenize.size, runtime, "shards of tokens")
        check_encoded(done, sum(read_listing(text)[1].get(split, 0) for split in files))
        splits = dict[str, tuple[TokenFile, ...]]()
        for shard in done:
            ((name, _),) = shard.files.items()
            link_or_copy(tokenize.directory / name, directory / name)
            split = name.partition("-")[0]
            tokens = shard.counts[f"{split}_tokens"]
            splits[split] = (*splits.get(split, ()), TokenFile(name, tokens))
        meta = write_meta(directory, splits, vocabulary_size(tokenizer))
        write_listing(directory, done)
        runtime.tracker.progress(1, 1, f"{meta.tokens('train'):,} tokens")
        return Tokenized(TokenShards(directory))
