"""Conversations for fine-tuning: a user's own file, split; and those conversations as marked tokens of a base model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from framework.artifacts import ChatSet, Checkpoint, TokenizerDir, TokenShards, read_json
from framework.bounds import NonNegativeInt, bounded
from framework.data.chat_encoding import encode_chat
from framework.data.chat_shards import Chat, EncodedChat, read_chats, write_chat_shards
from framework.data.chat_template import ChatTemplate, TemplateConfig
from framework.data.layouts.chats import load_chats
from framework.data.layouts.columns import Columns
from framework.data.readers import write_rows
from framework.data.selection import Drop
from framework.data.sources import find_source
from framework.data.think_tags import ThinkTags, prepare_think_tags
from framework.data.tokenizer_files import copy_files, load_tokenizer, vocabulary_size, write_template
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs
from framework.stages.prompts import QUESTION, PromptsConfig

_CHECKED = 256  # conversations that a plan encodes


@dataclass(frozen=True)
@bounded
class ChatsConfig:
    """Conversations in any of the layouts of `data.layouts.chats`: a file, glob, folder or hub data set.

    `heldout` names prompts with reference answers, as `PromptsConfig` reads them: the model is asked them before and
    after.
    """

    train: str | None = None
    columns: Columns = field(default_factory=dict)  # our name -> the file's
    validation_chats: NonNegativeInt = 0  # set apart at random
    heldout: str | None = None
    max_heldout: NonNegativeInt = 64  # of them evaluated, the first of the file; 0: all
    wording: str = QUESTION  # what each held-out question is put into

    @property
    def chats(self) -> Iterator[Chat]:
        """The conversations; raises UserError if none are given."""
        if self.train is None:
            raise UserError("data.train", None, "must name a file, glob, folder or hub data set of conversations")
        return load_chats(self.train, self.columns, "data.train")

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        conversations = () if self.train is None else find_source(self.train, "data.train").local
        return conversations + (self.prompts.named_files() if self.prompts else ())

    @property
    def prompts(self) -> PromptsConfig | None:
        """How the held-out prompts are read, where there are any."""
        if self.heldout is None:
            return None
        return PromptsConfig(heldout=self.heldout, max_heldout=self.max_heldout, wording=self.wording)

    def check(self, base: Path, config: TemplateConfig) -> None:
        """Encode the first conversations before a run starts; the stage does so with all.

        Raises UserError if the base's tokenizer is not what its files say, or a conversation does not fit the template.
        """
        template = ChatTemplate(load_tokenizer(base), config)
        for chat in itertools.islice(self.chats, _CHECKED):
            encode_chat(template, chat)

    def count_train(self) -> int:
        """Read the file and return how many conversations are for training; raises UserError naming a bad line."""
        chats = sum(1 for _ in self.chats)
        if chats <= self.validation_chats:
            raise UserError(
                "data.validation_chats", self.validation_chats, f"must be less than the {chats} of the file"
            )
        return chats - self.validation_chats


@dataclass(frozen=True)
class CollectedChats:
    """train.jsonl, and validation.jsonl if conversations are set apart."""

    chats: ChatSet


@dataclass(frozen=True)
class CollectChats:
    """The stage that splits the file."""

    config: ChatsConfig

    def run(self, inputs: NoInputs, runtime: Runtime) -> CollectedChats:
        """Write both splits in the file's order; those set apart depend on the seed."""
        config, directory = self.config, runtime.artifact_dir("chats")
        train = config.count_train()
        size = train + config.validation_chats
        apart = set(random.Random(runtime.seed).sample(range(size), config.validation_chats))
        for split in ("train", "validation") if apart else ("train",):
            chats = (c for place, c in enumerate(config.chats) if (place in apart) == (split != "train"))
            write_rows(directory / f"{split}.jsonl", map(asdict, chats))
        runtime.tracker.progress(size, size, f"{train} conversations")
        return CollectedChats(ChatSet(directory))


@dataclass(frozen=True)
class EncodeInputs:
    """Conversations, and the base model whose tokenizer splits them."""

    base: Checkpoint
    chats: ChatSet


@dataclass(frozen=True)
class EncodedChats:
    """Marked tokens by split, and the tokenizer with the template that they are in."""

    shards: TokenShards
    tokenizer: TokenizerDir


@dataclass(frozen=True)
class EncodeChats:
    """The stage that tokenizes them."""

    max_tokens: int  # of a conversation
    template: TemplateConfig = TemplateConfig()
    think_tags: ThinkTags | None = None  # what is made sure of in a student's own tokenizer; None: nothing
    # leave out what is too long, and say so in dropped.jsonl: a run's own samples are longer in another tokenizer
    drop_long: bool = False

    def run(self, inputs: EncodeInputs, runtime: Runtime) -> EncodedChats:
        """Encode every split there is; raises UserError for a conversation that is too long, or cannot be learned.

        Where those that are too long are dropped: for a split of which none is left.
        The tokenizer keeps its chat template unless another one is named.
        """
        shards, saved = runtime.artifact_dir("shards"), runtime.artifact_dir("tokenizer")
        copy_files(inputs.base.path, saved)
        if self.think_tags is not None:
            rows = read_json(inputs.base.path / "config.json").get("vocab_size")
            prepare_think_tags(saved, self.think_tags, rows, f"stage.{runtime.node}.think_tags")
        tokenizer = load_tokenizer(saved)
        template, size = ChatTemplate(tokenizer, self.template), vocabulary_size(tokenizer)
        tokens, dropped = 0, list[Drop]()
        for file in (inputs.chats.path / f"{split}.jsonl" for split in ("train", "validation")):
            if not file.is_file():
                continue
            (shards / file.stem).mkdir()
            meta = write_chat_shards(shards / file.stem, self._encoded(file, template, dropped), size)
            if not meta.chats:
                allowed = f"must have a conversation of at most {self.max_tokens} tokens"
                raise UserError(f"stage.{runtime.node}: {file}", f"{len(dropped)} too long", allowed)
            tokens += meta.tokens
        if self.drop_long:
            write_rows(shards / "dropped.jsonl", map(asdict, dropped))
        if self.template.name:
            write_template(saved, template.source)
        more = f", {len(dropped):,} conversations too long" if dropped else ""
        runtime.tracker.progress(1, 1, f"{tokens:,} tokens{more}")
        return EncodedChats(TokenShards(shards), TokenizerDir(saved))

    def _encoded(self, file: Path, template: ChatTemplate, dropped: list[Drop]) -> Iterator[EncodedChat]:
        for chat in read_chats(file):
            encoded = encode_chat(template, chat)
            if len(encoded.token_ids) > self.max_tokens and self.drop_long:
                dropped.append(Drop(chat.id, "too_long"))
                continue
            if len(encoded.token_ids) > self.max_tokens:
                allowed = f"must be at most {self.max_tokens}: the least of stage.sft.max_tokens, "
                allowed += "engine.learner.token_budget and model.max_position_embeddings"
                raise UserError(f"{chat.where or chat.id}: tokens", len(encoded.token_ids), allowed)
            yield encoded
