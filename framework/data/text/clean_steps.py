"""The steps of cleaning: judge each shard by itself, find duplicates by partitions, write what stays."""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.cleaning import CleanConfig, exact_key
from framework.data.text.beside import OneByOne
from framework.data.text.clusters import cluster_name
from framework.data.text.duplicates import (
    DROP,
    EDGE,
    EXACT,
    PLACE,
    MinHash,
    component_drops,
    exact_drops,
    id_halves,
    id_of,
    near_edges,
    without_copies,
)
from framework.data.text.judge import Verdict, judged, judged_beside
from framework.data.text.partitions import Dealer, dealt, of_shard, save
from framework.data.text.shard_files import (
    MOST_FAILED,
    Document,
    Done,
    ShardWriter,
    read_shard,
    shard_name,
    whole_file,
)
from framework.errors import UserError

SPLITS = ("train", "validation")
SAMPLES = 5  # dropped documents of each reason whose text is kept for people
_EXCERPT = 500  # characters of it
_TOGETHER = 256  # documents whose signatures are dealt at once
# Records of a partition, which are compared at once: the fewer the better for memory, until there are so many
# partitions that opening files takes longer than reading them; then they grow, up to the most.
_LEAST_RECORDS, _MOST_RECORDS, _MANY_PARTITIONS = 2**17, 2**20, 4096


@dataclass(frozen=True)
class Corpus:
    """Shards of both splits under one numbering, train first, and how many partitions their duplicates make."""

    files: tuple[Path, ...]
    train: int  # shards
    documents: int
    config: CleanConfig

    def split(self, number: int) -> int:
        """0 for a shard of train, 1 for one of validation."""
        return int(number >= self.train)

    def name(self, number: int) -> str:
        """The file of shard `number` in a set of text."""
        split = self.split(number)
        return shard_name(SPLITS[split], number - split * self.train)

    @property
    def minhash(self) -> MinHash | None:
        config = self.config
        if config.near_threshold is None:
            return None
        return MinHash(config.permutations, config.shingle_words, config.near_threshold)

    @property
    def exact_partitions(self) -> int:
        return partitions_of(self.documents)

    @property
    def near_partitions(self) -> int:
        return partitions_of(self.documents * self.minhash.bands[0] if self.minhash else 0)


def partitions_of(records: int) -> int:
    """Return into how many parts records are dealt that are compared within a part."""
    return 1 + max(min(records // _LEAST_RECORDS, _MANY_PARTITIONS), records // _MOST_RECORDS)


@dataclass(frozen=True)
class JudgeShards:
    """Each shard: the documents that stay by what is in them, signatures of those, and the dropped with reasons."""

    directory: Path
    corpus: Corpus
    heldout: Path | None
    alone: bool = False  # each document is judged in a process beside this one

    def careful(self) -> JudgeShards:
        """Survive documents that kill the process."""
        return replace(self, alone=True)

    def __call__(self, number: int) -> Done:
        """Judge shard `number`."""
        corpus, split = self.corpus, self.corpus.split(number)
        name, gone = corpus.name(number), Gone(SPLITS[split])
        names = [name, shard_name("dropped", number), *signature_names(number)]
        with (
            whole_file(self.directory / names[0]) as kept,
            whole_file(self.directory / names[1]) as dropped,
            whole_file(self.directory / names[2]) as exact,
            whole_file(self.directory / names[3]) as near,
            whole_file(self.directory / names[4]) as exact_ends,
            whole_file(self.directory / names[5]) as near_ends,
        ):
            signatures, shown, row = Signatures(corpus, exact, near), Counter[str](), 0
            for document, verdict in self._verdicts(corpus.files[number]):
                if verdict.language:
                    shown[f"language {verdict.language}"] += 1
                kind = "dropped" if verdict.reason else "kept"
                shown[f"{kind} of 2^{len(document.text).bit_length()} characters"] += 1
                if verdict.reason:
                    gone.add(dropped, document, verdict.reason, verdict.of)
                    continue
                kept.write_document(verdict.document)
                place = (split, *id_halves(document.id), number, row)
                signatures.add(verdict.document, verdict.words, place)
                row += 1
            for writer, ends in zip((exact_ends, near_ends), signatures.finish(), strict=True):
                save(writer, ends)
            writers = (kept, dropped, exact, near, exact_ends, near_ends)
            samples = gone.write_samples(self.directory, number)
        files = {name: writer.note() for name, writer in zip(names, writers, strict=True)} | samples
        return Done(files, {SPLITS[split]: row, **gone.counts}, dict(shown), (corpus.files[number].name,))

    def _verdicts(self, file: Path) -> Iterator[tuple[Document, Verdict]]:
        config, heldout = self.corpus.config, self.heldout
        if not self.alone:
            for document in read_shard(file):
                yield document, judged(config, heldout, document)
            return
        with OneByOne() as beside:
            for number, document in enumerate(read_shard(file), start=1):
                yield document, judged_beside(beside, f"{file}:{number}", config, heldout, document)


class Signatures:
    """Deals the signatures of documents, some at a time, to the partitions in which copies meet."""

    def __init__(self, corpus: Corpus, exact: ShardWriter, near: ShardWriter) -> None:
        self._config, self._minhash = corpus.config, corpus.minhash
        self._exact = Dealer(exact, corpus.exact_partitions, EXACT)
        self._near = Dealer(near, corpus.near_partitions, corpus.minhash.dtype if corpus.minhash else EXACT)
        self._keys: list[tuple[Any, ...]] = []
        self._sketches: list[Any] = []
        self._places: list[tuple[int, ...]] = []

    def add(self, document: Document, found: Sequence[str], place: tuple[int, ...]) -> None:
        """Take a document that stays; `found` are its words. One without any is no near duplicate of another."""
        if self._config.exact:
            self._keys.append((*exact_key(document.text), *place))
        if self._minhash and found:
            self._sketches.append(self._minhash.signature(found))
            self._places.append(place)
        if max(len(self._keys), len(self._places)) >= _TOGETHER:
            self._deal()

    def finish(self) -> tuple[Any, Any]:
        """Return where the records of each partition end, of exact and near ones."""
        self._deal()
        return self._exact.finish(), self._near.finish()

    def _deal(self) -> None:
        if self._keys:
            self._exact.add(np.array(self._keys, EXACT))
        if self._minhash and self._places:
            self._near.add(self._minhash.entries(np.array(self._sketches), np.array(self._places, PLACE)))
        self._keys, self._sketches, self._places = [], [], []


@dataclass
class Gone:
    """Dropped documents of a shard: a line each, counts by reason, and a sample with their text."""

    split: str
    counts: Counter[str] = field(default_factory=Counter)
    _samples: dict[str, list[tuple[str, dict[str, str]]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, writer: ShardWriter, document: Document, reason: str, of: str) -> None:
        """Write the document's line."""
        row = {"split": self.split, "id": document.id, "reason": reason, "of": of}
        writer.write_row(row)
        self.counts["dropped"] += 1
        self.counts[f"dropped.{reason}"] += 1
        self._samples[reason].append((document.id, {**row, "text": document.text[:_EXCERPT]}))
        if len(self._samples[reason]) > 100:
            self._samples[reason] = _smallest(self._samples[reason])

    def write_samples(self, directory: Path, number: int) -> dict[str, Any]:
        """Write those with the smallest ids: they are the same however documents are cut into shards."""
        name = shard_name("samples", number)
        with whole_file(directory / name) as writer:
            for reason in sorted(self._samples):
                for _, row in _smallest(self._samples[reason]):
                    writer.write_row(row)
        return {name: writer.note()}


def _smallest(rows: list[tuple[str, dict[str, str]]]) -> list[tuple[str, dict[str, str]]]:
    return heapq.nsmallest(SAMPLES, rows, key=lambda row: row[0])


def signature_names(number: int) -> tuple[str, str, str, str]:
    """Files of a shard's exact and near signatures, and of where their partitions end."""
    kinds = ("exact", "near", "exact_ends", "near_ends")
    exact, near, exact_ends, near_ends = (shard_name(kind, number, "bin") for kind in kinds)
    return exact, near, exact_ends, near_ends


@dataclass(frozen=True)
class FindExact:
    """Each partition: which documents of all shards go as exact duplicates."""

    directory: Path
    judged: Path
    corpus: Corpus

    def __call__(self, number: int) -> Done:
        """Compare partition `number`."""
        shards = range(len(self.corpus.files))
        entries = [_read(self.judged, shard, 0, EXACT, number) for shard in shards]
        return Done(_written(self.directory, "exact", number, exact_drops(np.concatenate(entries))))


@dataclass(frozen=True)
class FindNear:
    """Each partition: which documents that meet in a band are alike."""

    directory: Path
    judged: Path
    corpus: Corpus

    def __call__(self, number: int) -> Done:
        """Compare partition `number`."""
        minhash, shards = self.corpus.minhash, range(len(self.corpus.files))
        assert minhash is not None
        entries, waiting, edges = np.empty(0, minhash.dtype), list[Any](), list[Any]()
        for shard in shards:
            waiting.append(_read(self.judged, shard, 1, minhash.dtype, number))
            if sum(map(len, waiting)) > len(entries) + 2 * _LEAST_RECORDS:  # more than is meant: a text many times over
                entries, copies = without_copies(np.concatenate([entries, *waiting]))
                edges.append(copies)
                waiting = []
        edges.append(near_edges(np.concatenate([entries, *waiting]), minhash))
        return Done(_written(self.directory, "edges", number, np.unique(np.concatenate(edges))))


@dataclass(frozen=True)
class Connect:
    """All edges: the clusters that they make. In one process: it takes about 150 bytes an edge. For more see
    `clusters`.
    """

    directory: Path
    near: Path
    partitions: int

    def __call__(self, number: int) -> Done:
        """Write which documents go, by shard."""
        files = [self.near / shard_name("edges", part, "bin") for part in range(self.partitions)]
        drops, clusters = component_drops(np.unique(np.concatenate([np.fromfile(file, EDGE) for file in files])))
        sizes = {cluster_name(size): n for size, n in clusters.items()}
        return Done(_written(self.directory, "near", number, drops), {}, sizes)


@dataclass(frozen=True)
class WriteKept:
    """Each shard without its duplicates; lines are copied as they are."""

    directory: Path
    judged: Path
    exact: Path | None
    near: Path | None
    near_parts: int  # files of them
    corpus: Corpus

    def __call__(self, number: int) -> Done:
        """Write shard `number`."""
        corpus, split = self.corpus, self.corpus.split(number)
        name, listed = corpus.name(number), shard_name("dropped", number)
        drops, gone, row = self._drops(number), Gone(SPLITS[split]), 0
        with (
            (self.judged / name).open("rb") as lines,
            whole_file(self.directory / name) as kept,
            whole_file(self.directory / listed) as dropped,
        ):
            dropped.write((self.judged / listed).read_bytes())
            for place, line in enumerate(lines):
                if place in drops:
                    gone.add(dropped, Document(**json.loads(line)), *drops[place])
                else:
                    kept.write(line)
                    row += 1
        samples = gone.write_samples(self.directory, number)
        return Done({name: kept.note(), listed: dropped.note()} | samples, {SPLITS[split]: row, **gone.counts})

    def _drops(self, number: int) -> dict[int, tuple[str, str]]:
        """Row -> why it goes and of what it is a copy. A copy to the letter is called that."""
        found = {}
        for reason, directory, parts in (
            ("near_duplicate", self.near, self.near_parts),
            ("exact_duplicate", self.exact, self.corpus.exact_partitions),
        ):
            kind = reason.partition("_")[0]
            for part in range(parts if directory is not None else 0):
                assert directory is not None
                for drop in of_shard(directory / shard_name(kind, part, "bin"), DROP, number):
                    found[int(drop["row"])] = (reason, id_of(drop["of_high"], drop["of_low"]))
        return found


def _written(directory: Path, kind: str, number: int, records: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Write a file of records; its note by its name."""
    name = shard_name(kind, number, "bin")
    with whole_file(directory / name) as writer:
        return {name: save(writer, records)}


def _read(judged: Path, shard: int, kind: int, dtype: np.dtype[Any], partition: int) -> Any:
    names = signature_names(shard)
    return dealt(judged / names[kind], judged / names[kind + 2], dtype, partition)


def check_failed(shards: Sequence[Done]) -> None:
    """Raise UserError if rules failed on more documents than single broken ones explain."""
    counts = Counter[str]()
    for done in shards:
        counts.update(done.counts)
    seen = sum(counts[name] for name in (*SPLITS, "dropped"))
    if counts["dropped.failed"] > MOST_FAILED * seen:
        found = f"{counts['dropped.failed']} of {seen} documents on which a rule failed"
        raise UserError(
            "stage.clean", found, f"must be at most {MOST_FAILED:.0%}: see the samples of dropped documents"
        )
