"""Collect: generated (or given) prompts, split for good, and pretraining text: worked solutions or a given corpus."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from framework.artifacts import PromptSet, TextSet
from framework.bounds import Bound, PositiveInt, bounded
from framework.data.layouts.columns import Columns
from framework.data.layouts.prompts import load_prompts
from framework.data.readers import write_prompts
from framework.data.solutions import StyleConfig, check_solvable, document
from framework.data.sources import find_source
from framework.data.splits import check_disjoint
from framework.data.tasks import TaskConfig, check_task, generate, split_of, unique_prompts
from framework.data.text.shard_files import Document, document_id, write_text
from framework.data.tokenizer_training import TokenizerConfig, least_tokens
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.rewards.base import RewardConfig
from framework.stages.read_text import read_corpus
from framework.stages.references import judge_all, judge_given, judge_tasks
from framework.types import Prompt


@dataclass(frozen=True)
@bounded
class CollectConfig:
    """Tasks and sizes. `train_prompts_file` and `heldout_prompts_file` replace the generated prompts.

    `documents_files`, all of their documents, replace the `documents` that are generated; `validation_documents` of
    them, at most a tenth, are set apart at random. Each names a file, glob, folder or hub data set (`data.sources`).
    """

    tasks: Mapping[str, TaskConfig] = field(default_factory=dict)
    styles: StyleConfig = StyleConfig()
    documents: PositiveInt = 40_000
    validation_documents: PositiveInt = 500
    train_prompts: PositiveInt = 4096
    heldout_prompts: PositiveInt = 128
    heldout_share: Annotated[float, Bound(above=0, below=1)] = 0.1  # of all different questions
    train_prompts_file: str | None = None
    heldout_prompts_file: str | None = None
    documents_files: tuple[str, ...] = ()
    shard_mb: PositiveInt = 64  # MiB of those files that are worked on together; no result depends on it
    columns: Columns = field(default_factory=dict)  # of the prompts: our name -> the file's

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("data.tasks", {}, "name at least one reasoning-gym data set")
        for task in self.tasks:
            if not self.documents_files:
                check_solvable(task)
            elif self.train_prompts_file is None:
                check_task(task)
        for place, name in enumerate(self.documents_files):
            find_source(name, "data.documents_files")
            if name in self.documents_files[:place]:
                raise UserError("data.documents_files", name, "is named twice")
        if (self.train_prompts_file is None) != (self.heldout_prompts_file is None):
            raise UserError("data.train_prompts_file", self.train_prompts_file, "goes with data.heldout_prompts_file")
        given = self.given_prompts()  # before anything is created
        if given:
            check_disjoint(given["train"], given["heldout"])

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        named = [("data.documents_files", name, "train") for name in self.documents_files]
        named += [(f"data.{split}_prompts_file", name, hub) for split, hub, name in self._prompts_files()]
        return tuple(file for key, name, split in named for file in find_source(name, key, split).local)

    def given_prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """Return split -> the prompts of the files; empty without files. Raises UserError for a row that is wrong."""
        return {
            split: load_prompts(name, self.columns, f"data.{split}_prompts_file", hub)
            for split, hub, name in self._prompts_files()
        }

    def _prompts_files(self) -> list[tuple[str, str, str]]:
        """(ours, the hub's name of the split, what is named) of the prompts that are given."""
        given = (("train", "train", self.train_prompts_file), ("heldout", "test", self.heldout_prompts_file))
        return [(split, hub, name) for split, hub, name in given if name is not None]


@dataclass(frozen=True)
class NoInputs:
    """The graph starts here."""


@dataclass(frozen=True)
class Collected:
    """Pretraining text and prompts; no held-out question is in the text or among the train prompts."""

    text: TextSet
    prompts: PromptSet


@dataclass(frozen=True)
class Collect:
    """The stage."""

    keeps_work: ClassVar[bool] = False  # the artifacts have all that stays
    config: CollectConfig
    rewards: RewardConfig | None = None  # what is to score the prompts; None: their references are not judged

    def look_ahead(self) -> str:
        """Judge the reference answers of some prompts."""
        if self.rewards is None:
            return ""
        if given := self.config.given_prompts():
            return judge_given(self.rewards, self._named(given))
        return judge_tasks(self.rewards, self.config.tasks)

    def run(self, inputs: NoInputs, runtime: Runtime) -> Collected:
        """Write the two sets."""
        config = self.config
        train, heldout = self._prompts(runtime.seed)
        check_disjoint(train, heldout)
        if self.rewards is not None:
            judge_all(self.rewards, self._named({"train": train, "heldout": heldout}), runtime)
        text, prompts = runtime.artifact_dir("text"), runtime.artifact_dir("prompts")
        write_prompts(prompts / "train.jsonl", train)
        write_prompts(prompts / "heldout.jsonl", heldout)
        if config.documents_files:
            size = self._write_corpus(runtime, text)
        else:
            banned = {prompt.text for prompt in heldout}
            documents = self._documents(runtime.seed, banned, config.documents + config.validation_documents)
            apart = config.validation_documents
            write_text(text, {"validation": documents[:apart], "train": documents[apart:]})
            size = len(documents)
        runtime.tracker.progress(size, size, f"{len(train)} prompts")
        return Collected(TextSet(text), PromptSet(prompts))

    def _named(self, splits: Mapping[str, Sequence[Prompt]]) -> dict[str, Sequence[Prompt]]:
        """The splits under the names of their files."""
        files = {"train": self.config.train_prompts_file, "heldout": self.config.heldout_prompts_file}
        return {files[split] or f"{split} prompts": prompts for split, prompts in splits.items()}

    def _prompts(self, seed: int) -> tuple[list[Prompt], list[Prompt]]:
        config = self.config
        if given := config.given_prompts():
            return list(given["train"]), list(given["heldout"])
        sizes = {"train": config.train_prompts, "heldout": config.heldout_prompts}
        train, heldout = (
            unique_prompts(config.tasks, split, size, config.heldout_share, 7919 * seed + place)
            for place, (split, size) in enumerate(sizes.items())
        )
        return train, heldout

    def _write_corpus(self, runtime: Runtime, directory: Path) -> int:
        """Write the given documents in their order, those of validation drawn at random; returns how many."""
        key, apart = "data.documents_files", self.config.validation_documents
        files = self.config.documents_files
        sources = [(str(place), find_source(name, key).files) for place, name in enumerate(files, start=1)]
        counts = read_corpus(sources, {}, key, apart, self.config.shard_mb, runtime, directory)
        return counts["train"] + counts["validation"]

    def _documents(self, seed: int, banned: set[str], size: int) -> list[Document]:
        """Documents on questions of the train side, the tasks in proportion to their weights, in random order."""
        rng = random.Random(seed)
        total = sum(task.weight for task in self.config.tasks.values())
        texts: list[str] = []
        for place, (name, task) in enumerate(sorted(self.config.tasks.items())):
            wanted = round(size * task.weight / total) + 1
            prompts = self._train_side(name, task, 104_729 * (seed + 1) + place, wanted, banned)
            texts += [document(prompt, self.config.styles, rng) for prompt in prompts]
        rng.shuffle(texts)
        return [Document(document_id("", text), text) for text in texts[:size]]

    def _train_side(self, name: str, task: TaskConfig, seed: int, wanted: int, banned: set[str]) -> Iterator[Prompt]:
        found = 0
        for prompt in generate(name, task, seed, 4 * wanted + 64):
            if found == wanted:
                return
            if split_of(prompt.text, self.config.heldout_share) == "train" and prompt.text not in banned:
                found += 1
                yield prompt


def check_given_prompts(
    data: CollectConfig, rewards: RewardConfig, tokenizer: TokenizerConfig, context: int, max_new_tokens: int
) -> None:
    """Raise UserError for a given prompt that cannot fit into the context with a tokenizer of this kind, or be scored.

    What only the trained tokenizer can tell is for `Tokenize` to find.
    """
    if data.train_prompts_file is None:
        for task, generated in data.tasks.items():
            rewards.check_names(generated.rewards, f"data.tasks.{task}.rewards")
    names = {"train": data.train_prompts_file, "heldout": data.heldout_prompts_file}
    for split, prompts in data.given_prompts().items():
        file = names[split]
        rewards.check_prompts(prompts)
        for prompt in prompts:
            tokens = len(prompt.token_ids) or least_tokens(prompt.text, tokenizer.digits_per_token)
            if tokens > context - max_new_tokens:
                allowed = f"must be at most {context - max_new_tokens}: the context holds {context}"
                allowed += f", and {max_new_tokens} are for the response"
                raise UserError(f"{file}: prompt {prompt.id}: tokens", f"at least {tokens}", allowed)
            if prompt.token_ids and not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < tokenizer.vocab_size:
                worst = max(prompt.token_ids, key=lambda token: abs(token - tokenizer.vocab_size / 2))
                allowed = f"must be 0 to {tokenizer.vocab_size - 1}: stage.tokenizer.vocab_size={tokenizer.vocab_size}"
                raise UserError(f"{file}: prompt {prompt.id}: token", worst, allowed)
