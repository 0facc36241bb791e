"""Reads the documents that a stage names into the shards of a TextSet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from framework.data.layouts.columns import Columns
from framework.data.remote import DataFile
from framework.data.text.pieces import cut
from framework.data.text.reading import ReadPieces, SetApart, check_rejected, drawn
from framework.data.text.shard_files import Done, shard_name, whole_file, write_listing
from framework.errors import UserError
from framework.files import link_or_copy
from framework.graph.nodes import Runtime
from framework.stages.shard_runs import run_shards

MIB = 2**20


def read_corpus(
    sources: Sequence[tuple[str, Sequence[DataFile]]],
    columns: Columns,
    key: str,
    apart: int,
    shard_mb: int,
    runtime: Runtime,
    directory: Path,
) -> dict[str, int]:
    """Write train and validation shards into `directory`; returns their counts.

    `apart` documents, at most a tenth, are for validation. `key` names the setting in errors: UserError for files that
    can't be read, and where there are fewer than two documents.
    """
    shards = tuple(cut(sources, shard_mb * MIB))
    read = ReadPieces(runtime.work_dir / "read", shards, columns, key, runtime.seed, apart)
    done = run_shards(read, len(shards), runtime, "shards read")
    check_rejected(done)
    size = sum(shard.counts["train"] for shard in done)
    if size < 2:
        raise UserError(key, f"{size} documents", "must be 2 or more: one is for validation")
    rows = defaultdict[int, list[int]](list)
    for number, row in drawn(done, max(1, min(apart, size // 10))):
        rows[number].append(row)
    files = tuple(read.directory / shard_name("train", number) for number in rows)
    parted = SetApart(runtime.work_dir / "parted", files, tuple(map(tuple, rows.values())))
    made = run_shards(parted, len(files), runtime, "shards parted")
    validation = _link_parted(parted, made, list(rows), done, directory)
    for number in range(len(done)):
        if number not in rows:
            link_or_copy(read.directory / shard_name("train", number), directory / shard_name("train", number))
    return write_listing(directory, [*done, validation])


def _link_parted(parted: SetApart, made: Sequence[Done], numbers: list[int], done: list[Done], directory: Path) -> Done:
    """Link the shards without what was set apart, and join that; `done` then knows of it."""
    name, held = shard_name("validation", 0), 0
    with whole_file(directory / name) as writer:
        for place, (number, shard) in enumerate(zip(numbers, made, strict=True)):
            train, taken = shard_name("train", number), len(parted.rows[place])
            link_or_copy(parted.directory / train, directory / train)
            counts = {**done[number].counts, "train": done[number].counts["train"] - taken}
            done[number] = replace(done[number], files={train: shard.files[train]}, counts=counts)
            writer.write((parted.directory / shard_name("validation", place)).read_bytes())
            held += taken
    return Done({name: writer.note()}, {"validation": held})
