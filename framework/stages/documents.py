"""Your own documents for pretraining, some of them set apart for validation."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from framework.artifacts import TextSet
from framework.bounds import PositiveInt, bounded
from framework.data.layouts.documents import load_documents
from framework.data.readers import write_documents
from framework.data.sources import find_source
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs


@dataclass(frozen=True)
@bounded
class DocumentsConfig:
    """`documents` names a file, glob, folder or hub data set (`data.sources`)."""

    documents: str | None = None
    validation_documents: PositiveInt = 64  # drawn at random; at most a tenth

    @property
    def source(self) -> str:
        """What `documents` names; raises UserError if it names nothing."""
        if self.documents is None:
            raise UserError("data.documents", None, "must name a file, glob, folder or hub data set of documents")
        return self.documents

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        return find_source(self.source, "data.documents").files


@dataclass(frozen=True)
class CollectedDocuments:
    """train.jsonl and validation.jsonl."""

    text: TextSet


@dataclass(frozen=True)
class CollectDocuments:
    """The stage."""

    config: DocumentsConfig

    def run(self, inputs: NoInputs, runtime: Runtime) -> CollectedDocuments:
        """Write both splits in the documents' order; raises UserError naming what cannot be read."""
        source, directory = self.config.source, runtime.artifact_dir("text")
        size = sum(1 for _ in load_documents(source, key="data.documents"))
        if size < 2:
            raise UserError("data.documents", f"{size} documents", "must be 2 or more: one is for validation")
        share = max(1, min(self.config.validation_documents, size // 10))
        apart = set(random.Random(runtime.seed).sample(range(size), share))
        for split in ("validation", "train"):
            documents = enumerate(load_documents(source, key="data.documents"))
            wanted = (doc for place, doc in documents if (place in apart) == (split != "train"))
            write_documents(directory / f"{split}.jsonl", wanted)
        runtime.tracker.progress(size, size, "documents")
        return CollectedDocuments(TextSet(directory))
