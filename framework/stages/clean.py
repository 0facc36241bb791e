"""Clean the collected text: duplicates go, and whatever shares a passage with a held-out prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from framework.artifacts import PromptSet, TextSet
from framework.data.cleaning import CleanConfig, Cleaner
from framework.data.readers import Document, read_documents, read_prompts, write_documents
from framework.errors import UserError
from framework.graph.nodes import Runtime


@dataclass(frozen=True)
class CleanInputs:
    """Text, and the prompts whose held-out side must not be in it."""

    text: TextSet
    prompts: PromptSet | None = None


@dataclass(frozen=True)
class Cleaned:
    """What is left; dropped.jsonl beside it says which document went, why, and of what it is a copy."""

    text: TextSet


@dataclass(frozen=True)
class Clean:
    """The stage. Validation comes after train in one cleaner: no duplicate stands on both sides."""

    config: CleanConfig

    def run(self, inputs: CleanInputs, runtime: Runtime) -> Cleaned:
        """Write the documents that stay; raises UserError if a split has none left."""
        heldout = () if inputs.prompts is None else read_prompts(inputs.prompts.path / "heldout.jsonl")
        cleaner, directory = Cleaner(self.config, heldout), runtime.artifact_dir("text")
        counts: Counter[str] = Counter()
        with (directory / "dropped.jsonl").open("w") as report:
            for split in ("train", "validation"):
                before, source = counts.copy(), inputs.text.path / f"{split}.jsonl"
                left = _kept(source, split, cleaner, report, counts, runtime)
                kept = write_documents(directory / f"{split}.jsonl", left)
                counts["kept"] += kept
                if not kept:
                    raise UserError(str(source), _listed(counts - before), "must keep a document: see stage.clean")
        runtime.tracker.progress(counts.total(), counts.total(), _listed(counts))
        return Cleaned(TextSet(directory))


def _kept(
    source: Path, split: str, cleaner: Cleaner, report: TextIO, counts: Counter[str], runtime: Runtime
) -> Iterator[Document]:
    for document in read_documents(source):
        runtime.stop_if_asked()  # nothing is saved: the stage begins again
        dropped = cleaner.judge(document)
        if dropped is None:
            yield document
        else:
            counts[dropped.reason] += 1
            report.write(json.dumps({"split": split, **asdict(dropped)}, ensure_ascii=False) + "\n")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(counts.items()))
