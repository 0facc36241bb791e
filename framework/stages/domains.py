"""The text of `job=transformers`: documents that say where they come from, of your own or generated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from framework.artifacts import TextSet
from framework.bounds import PositiveInt, bounded
from framework.data.layouts.documents import text_in
from framework.data.rows import file_rows
from framework.data.solutions import StyleConfig, check_solvable, document
from framework.data.sources import find_source
from framework.data.tasks import TaskConfig, generate
from framework.data.text.shard_files import Document, document_id, write_text
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs

WORKED = StyleConfig(template_share=0.0, careful=1.0, careless=0.0, hasty=0.0, plain=0.0, mixed=0.0)


@dataclass(frozen=True)
@bounded
class DomainsConfig:
    """`documents`: files, globs, folders or hub data sets (`data.sources`), each a domain; none: worked tasks.

    A generated document's domain is its task.
    """

    documents: tuple[str, ...] = ()
    tasks: Mapping[str, TaskConfig] = field(default_factory=dict)
    generated: PositiveInt = 12_000  # documents, by the tasks' weights
    validation_documents: PositiveInt = 500  # drawn at random, at most a tenth

    def __post_init__(self) -> None:
        if not self.documents and not self.tasks:
            raise UserError("data.documents", [], "must name files of documents, or data.tasks what to generate")
        for task in self.tasks if not self.documents else ():
            check_solvable(task)
        for name in self.documents:
            find_source(name, "data.documents")

    @property
    def domains(self) -> tuple[str, ...]:
        """Their names: tasks, or the files that are given."""
        if not self.documents:
            return tuple(sorted(self.tasks))
        files = (file for name in self.documents for file in find_source(name, "data.documents").files)
        return tuple(dict.fromkeys(Path(str(file)).stem for file in files))

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        return tuple(file for name in self.documents for file in find_source(name, "data.documents").local)


@dataclass(frozen=True)
class CollectedDomains:
    """A shard of each split; a document's source is its domain."""

    text: TextSet


@dataclass(frozen=True)
class CollectDomains:
    """The stage."""

    config: DomainsConfig

    def run(self, inputs: NoInputs, runtime: Runtime) -> CollectedDomains:
        """Write both splits, shuffled; raises UserError naming what cannot be read."""
        config, directory = self.config, runtime.artifact_dir("text")
        found = list(self._given() if config.documents else self._generated(runtime.seed))
        if len(found) < 2:
            raise UserError("data.documents", f"{len(found)} documents", "must be 2 or more: one is for validation")
        random.Random(runtime.seed).shuffle(found)
        apart = max(1, min(config.validation_documents, len(found) // 10))
        write_text(directory, {"train": found[apart:], "validation": found[:apart]})
        runtime.tracker.progress(len(found), len(found), "documents")
        return CollectedDomains(TextSet(directory))

    def _given(self) -> Iterator[Document]:
        for name in self.config.documents:
            for file in find_source(name, "data.documents").files:
                domain = Path(str(file)).stem
                for row in file_rows(file):
                    text = text_in(row, {}, "data.documents")
                    yield Document(document_id(domain, text), text, domain)

    def _generated(self, seed: int) -> Iterator[Document]:
        rng, total = random.Random(seed), sum(task.weight for task in self.config.tasks.values())
        for place, (name, task) in enumerate(sorted(self.config.tasks.items())):
            wanted = round(self.config.generated * task.weight / total)
            for prompt in generate(name, task, seed + 104_729 * place, wanted):
                text = document(prompt, WORKED, rng)
                yield Document(document_id(name, text), text, name)
