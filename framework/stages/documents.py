"""Your own documents for pretraining, some of them set apart for validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from framework.artifacts import TextSet
from framework.bounds import PositiveInt, bounded
from framework.data.sources import find_source
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs
from framework.stages.read_text import read_corpus


@dataclass(frozen=True)
@bounded
class DocumentsConfig:
    """`documents` names a file, glob, folder or hub data set (`data.sources`)."""

    documents: str | None = None
    validation_documents: PositiveInt = 64  # drawn at random; at most a tenth
    shard_mb: PositiveInt = 64  # MiB of files that are worked on together; no result depends on it

    @property
    def source(self) -> str:
        """What `documents` names; raises UserError if it names nothing."""
        if self.documents is None:
            raise UserError("data.documents", None, "must name a file, glob, folder or hub data set of documents")
        return self.documents

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        return find_source(self.source, "data.documents").local


@dataclass(frozen=True)
class CollectedDocuments:
    """Train and validation shards."""

    text: TextSet


@dataclass(frozen=True)
class CollectDocuments:
    """The stage."""

    keeps_work: ClassVar[bool] = False  # the artifacts have all that stays
    config: DocumentsConfig

    def lacks(self) -> UserError | None:
        """The documents; sizes and hours are planned without any."""
        try:
            _ = self.config.source
        except UserError as error:
            return error
        return None

    def look_ahead(self) -> str:
        """Raise UserError if what is named is not there."""
        if self.config.documents is not None:
            find_source(self.config.documents, "data.documents")
        return ""

    def run(self, inputs: NoInputs, runtime: Runtime) -> CollectedDocuments:
        """Write both splits in the documents' order; raises UserError naming what cannot be read."""
        config, directory = self.config, runtime.artifact_dir("text")
        sources = [("1", find_source(config.source, "data.documents").files)]
        apart = config.validation_documents
        read_corpus(sources, {}, "data.documents", apart, config.shard_mb, runtime, directory)
        return CollectedDocuments(TextSet(directory))
