"""Clean the collected text: duplicates go, and whatever shares a passage with a held-out prompt."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from framework.artifacts import PromptSet, TextSet, read_listing
from framework.data.cleaning import CleanConfig
from framework.data.text.clean_steps import (
    SAMPLES,
    SPLITS,
    Corpus,
    FindExact,
    FindNear,
    JudgeShards,
    WriteKept,
    check_failed,
)
from framework.data.text.shard_files import Done, shard_name, text_files, whole_file, write_listing
from framework.errors import UserError
from framework.files import link_or_copy
from framework.graph.nodes import Runtime
from framework.stages.connect import connect
from framework.stages.shard_runs import run_shards

DROPPED_SAMPLES = "dropped_samples.jsonl"


@dataclass(frozen=True)
class CleanInputs:
    """Text, and the prompts whose held-out side must not be in it."""

    text: TextSet
    prompts: PromptSet | None = None


@dataclass(frozen=True)
class Cleaned:
    """What is left; dropped-*.jsonl beside it say which document went, why, and of what it is a copy."""

    text: TextSet


@dataclass(frozen=True)
class Clean:
    """The stage. Of duplicates one of train stays before one of validation, then the one of the smallest id."""

    keeps_work: ClassVar[bool] = False  # the artifacts have all that stays
    config: CleanConfig

    def run(self, inputs: CleanInputs, runtime: Runtime) -> Cleaned:
        """Write the documents that stay; raises UserError if a split has none left."""
        files = {split: text_files(inputs.text.path, split) for split in SPLITS}
        counts = read_listing(inputs.text.path)[1]
        documents = sum(counts[split] for split in SPLITS)
        everything = tuple(file for split in SPLITS for file in files[split])
        corpus = Corpus(everything, len(files["train"]), documents, self.config)
        heldout = None if inputs.prompts is None else inputs.prompts.path / "heldout.jsonl"
        work, size = runtime.work_dir, len(everything)
        judge = JudgeShards(work / "judged", corpus, heldout)
        judged = run_shards(judge, size, runtime, "shards judged")
        check_failed(judged)
        made, found = self._without_duplicates(judge, judged, runtime)
        directory = runtime.artifact_dir("text")
        for number, (done, kept) in enumerate(zip(judged, made, strict=True)):
            for name in (corpus.name(number), shard_name("dropped", number)):
                link_or_copy((judge.directory if kept is done else work / "kept") / name, directory / name)
        sources = [work / step / shard_name("samples", n) for step in ("judged", "kept") for n in range(size)]
        samples = _write_samples([file for file in sources if file.is_file()], directory)
        listed = [_listed(corpus, number, judged[number], made[number]) for number in range(size)]
        counts = write_listing(directory, [*listed, replace(found, files=samples)])
        told = _told(counts)
        for split in SPLITS:
            if not counts.get(split):
                source = inputs.text.path / shard_name(split, 0)
                raise UserError(str(source), told, "must keep a document: see stage.clean")
        runtime.tracker.progress(documents, documents, told)
        return Cleaned(TextSet(directory))

    def _without_duplicates(
        self, judge: JudgeShards, judged: Sequence[Done], runtime: Runtime
    ) -> tuple[Sequence[Done], Done]:
        """Return what was made of each shard, `judged` where no copies are looked for; and the clusters."""
        corpus, work, found = judge.corpus, runtime.work_dir, Done()
        near_dir, near_parts = None, 0
        exact = FindExact(work / "exact", judge.directory, corpus) if corpus.config.exact else None
        near = FindNear(work / "near", judge.directory, corpus) if corpus.minhash else None
        if exact is not None:
            run_shards(exact, corpus.exact_partitions, runtime, "partitions of exact duplicates")
        if near is not None:
            pairs = run_shards(near, corpus.near_partitions, runtime, "partitions of near duplicates")
            near_dir, near_parts, found = connect(near.directory, pairs, runtime)
        if exact is None and near is None:
            return judged, found
        exact_dir = None if exact is None else exact.directory
        write = WriteKept(work / "kept", judge.directory, exact_dir, near_dir, near_parts, corpus)
        return run_shards(write, len(judged), runtime, "shards written"), found


def _listed(corpus: Corpus, number: int, judged: Done, kept: Done) -> Done:
    """What is told of a shard of the result: its files there, and what both steps dropped of it."""
    names = (corpus.name(number), shard_name("dropped", number))
    split = SPLITS[corpus.split(number)]
    counts = Counter(judged.counts) + (Counter(kept.counts) if kept is not judged else Counter())
    counts[split] = kept.counts[split]
    return Done({name: kept.files[name] for name in names}, dict(counts), judged.shown, judged.sources)


def _write_samples(files: Sequence[Path], directory: Path) -> dict[str, Any]:
    """Of every reason the dropped documents of the smallest ids, with the beginning of their text."""
    rows = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    with whole_file(directory / DROPPED_SAMPLES) as writer:
        for reason in sorted({row["reason"] for row in rows}):
            of_it = [row for row in rows if row["reason"] == reason]
            for row in heapq.nsmallest(SAMPLES, of_it, key=lambda row: str(row["id"])):
                writer.write_row(row)
    return {DROPPED_SAMPLES: writer.note()}


def _told(counts: dict[str, int]) -> str:
    reasons = {name.removeprefix("dropped."): count for name, count in counts.items() if name.startswith("dropped.")}
    kept = sum(counts.get(split, 0) for split in SPLITS)
    listed = [f"{kept:,} kept", *(f"{reasons[name]:,} {name.replace('_', ' ')}" for name in sorted(reasons))]
    return ", ".join(listed)
