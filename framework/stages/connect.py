"""Which documents go as near duplicates: in one process while pairs are few, else over partitions, in rounds."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from framework.data.text.clean_steps import Connect, partitions_of
from framework.data.text.clusters import DealPairs, LargeStar, Leaves, Sizes, SmallStar
from framework.data.text.duplicates import EDGE
from framework.data.text.shard_files import Done
from framework.graph.nodes import Runtime
from framework.stages.shard_runs import run_shards

FEW_PAIRS = 2**19  # 80 MB in one process


def connect(near: Path, found: Sequence[Done], runtime: Runtime) -> tuple[Path, int, Done]:
    """Return the directory that says which documents go, its files, and how large the clusters are.

    `found`: the files of pairs in `near`.
    """
    work = runtime.work_dir
    pairs = sum(note.bytes for done in found for note in done.files.values()) // EDGE.itemsize
    if pairs <= FEW_PAIRS:
        (done,) = run_shards(Connect(work / "connected", near, len(found)), 1, runtime, "clusters of near duplicates")
        return work / "connected", 1, done
    parts = partitions_of(2 * pairs)
    before, sources = work / "pairs", len(found)
    run_shards(DealPairs(before, near, parts), sources, runtime, "files of pairs dealt")
    for turn in itertools.count(1):
        small = SmallStar(work / f"small-{turn}", before, sources, parts)
        run_shards(small, parts, runtime, f"partitions of clusters, round {turn}")
        large = LargeStar(work / f"large-{turn}", small.directory, parts, parts)
        stars = run_shards(large, parts, runtime, f"partitions of clusters, round {turn}, second half")
        if not any(done.counts["unsettled"] for done in stars):
            break
        before, sources = large.directory, parts
    leaves = Leaves(work / "connected", large.directory, parts, parts)
    run_shards(leaves, parts, runtime, "partitions of near duplicates that go")
    shown = Counter[str]()
    for done in run_shards(Sizes(work / "sizes", leaves.directory, parts, parts), parts, runtime, "clusters counted"):
        shown.update(done.shown)
    return leaves.directory, parts, Done({}, {}, dict(shown))
