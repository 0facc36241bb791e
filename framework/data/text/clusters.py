"""Clusters of near duplicates from pairs, over partitions: connected components by stars, in rounds of shuffles.

Each round turns the graph of pairs into another with the same components (Kiveris et al. 2014, "Connected Components in
MapReduce and Beyond": small-star and large-star in turn). In a small star a node ties itself and its smaller neighbours
to the smallest of them; in a large star it ties its larger neighbours to the smallest node that it knows. In the end
each cluster is a star around its smallest node, which is the document that stays. Memory holds the pairs of a
partition; of a node with millions of neighbours, a part of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.text.duplicates import EDGE, PLACE, Array, begins, dropped, first_of_group, mixed
from framework.data.text.partitions import Dealer, dealt, save
from framework.data.text.shard_files import Done, shard_name, whole_file

# A place as bytes that sort as it does, so that nodes are compared and sorted as one value each.
_BYTES = np.dtype([(name, kind.replace("<", ">")) for name, kind in PLACE])
_NODE = f"S{_BYTES.itemsize}"
PAIR = np.dtype([("key", "<u8"), ("at", _NODE), ("near", _NODE)])  # `at`: the node whose partition it goes to
SIZE = np.dtype([("key", "<u8"), ("center", _NODE), ("leaves", "<i8")])
_TOGETHER = 2**16  # pairs that are worked on at once


@dataclass(frozen=True)
class DealPairs:
    """Each file of pairs of documents that are alike: dealt to the partition of the larger one."""

    directory: Path
    near: Path
    partitions: int

    def __call__(self, number: int) -> Done:
        """Deal one file."""
        file = _file(self.near, "edges", number)
        edges: Array = np.memmap(file, EDGE, "r") if file.stat().st_size else np.empty(0, EDGE)
        with _dealing(self.directory, number, self.partitions, PAIR) as (dealer, notes):
            for start in range(0, len(edges), _TOGETHER):
                block = np.asarray(edges[start : start + _TOGETHER])
                one, other = (_nodes(block, end) for end in ("first", "other"))
                dealer.add(_pairs(np.where(one < other, other, one), np.where(one < other, one, other)))
        return Done(notes)


@dataclass(frozen=True)
class Shuffle:
    """What the tasks before have dealt to the partitions of this step."""

    directory: Path
    before: Path
    sources: int
    partitions: int

    def blocks(self, number: int, dtype: np.dtype[Any] = PAIR) -> Iterator[Array]:
        """Yield the records of a partition, some at a time; at least one block."""
        waiting, size = [np.empty(0, dtype)], 0
        for source in range(self.sources):
            file, ends = (_file(self.before, kind, source) for kind in ("pairs", "pairs_ends"))
            waiting.append(dealt(file, ends, dtype, number))
            size += len(waiting[-1])
            if size >= _TOGETHER:
                yield np.concatenate(waiting)
                waiting, size = [np.empty(0, dtype)], 0
        yield np.concatenate(waiting)


@dataclass(frozen=True)
class SmallStar(Shuffle):
    """Each partition: nodes with the neighbours that are smaller; all are tied to the smallest, both ways."""

    def __call__(self, number: int) -> Done:
        """Work on one partition."""
        pairs = _unique(np.concatenate([_unique(block) for block in self.blocks(number)]))
        with _dealing(self.directory, number, self.partitions, PAIR) as (dealer, notes):
            new = begins(pairs["at"])
            smallest = pairs["near"][first_of_group(new)]
            # The smallest neighbour needs no tie to itself: the node's own stands in its place.
            tied = np.where(new, pairs["at"], pairs["near"])
            for start in range(0, len(pairs), _TOGETHER):
                end = start + _TOGETHER
                dealer.add(_pairs(tied[start:end], smallest[start:end]))
                dealer.add(_pairs(smallest[start:end], tied[start:end]))
        return Done(notes)


@dataclass(frozen=True)
class LargeStar(Shuffle):
    """Each partition: nodes with all neighbours; the larger ones are tied to the smallest of all.

    Counts the nodes that are `unsettled`: with a smaller neighbour and another one. Where there is none, all is stars.
    """

    def __call__(self, number: int) -> Done:
        """Work on one partition."""
        nodes, smallest = np.empty(0, _NODE), np.empty(0, _NODE)
        for block in self.blocks(number):
            at, near = np.concatenate([nodes, block["at"]]), np.concatenate([smallest, block["near"]])
            order = np.lexsort((near, at))
            at, near = at[order], near[order]
            new = begins(at)
            nodes, smallest = at[new], near[new]
        unsettled = np.zeros(len(nodes), bool)
        with _dealing(self.directory, number, self.partitions, PAIR) as (dealer, notes):
            for block in self.blocks(number):
                at, near = block["at"], block["near"]
                place = np.searchsorted(nodes, at)
                least = smallest[place]
                unsettled[place[(least < at) & (near != least)]] = True
                larger = near > at
                center = np.where(least < at, least, at)
                dealer.add(_unique(_pairs(near[larger], center[larger])))
        return Done(notes, {"unsettled": int(unsettled.sum())})


@dataclass(frozen=True)
class Leaves(Shuffle):
    """Each partition of stars: the documents that go; how many go of each cluster is dealt to the kept one's."""

    def __call__(self, number: int) -> Done:
        """Write the drops of one partition, sorted by shard and row."""
        pairs = _unique(np.concatenate([_unique(block) for block in self.blocks(number)]))
        goes, stays = pairs["at"].view(_BYTES), pairs["near"].view(_BYTES)
        name = shard_name("near", number, "bin")
        with whole_file(self.directory / name) as writer:
            note = save(writer, dropped(goes, stays))
        with _dealing(self.directory, number, self.partitions, SIZE) as (dealer, notes):
            centers, leaves = np.unique(pairs["near"], return_counts=True)
            sizes = np.empty(len(centers), SIZE)
            sizes["key"], sizes["center"], sizes["leaves"] = _keys(centers), centers, leaves
            dealer.add(sizes)
        return Done({**notes, name: note})


@dataclass(frozen=True)
class Sizes(Shuffle):
    """Each partition: how many clusters of each size there are."""

    def __call__(self, number: int) -> Done:
        """Count those of one partition."""
        sizes = np.concatenate(list(self.blocks(number, SIZE)))
        _, place = np.unique(sizes["center"], return_inverse=True)
        members = np.bincount(place, sizes["leaves"]).astype(np.int64) + 1
        shown = zip(*(found.tolist() for found in np.unique(members, return_counts=True)), strict=True)
        return Done({}, {}, {cluster_name(size): count for size, count in shown})


def cluster_name(size: int) -> str:
    """Return how the listing calls clusters of a size."""
    return f"near duplicates, cluster of {size}"


@contextmanager
def _dealing(
    directory: Path, number: int, partitions: int, dtype: np.dtype[Any]
) -> Iterator[tuple[Dealer, dict[str, Any]]]:
    """Deal records to the partitions of the next step; the notes of the files are there behind the block."""
    files = [_file(directory, kind, number) for kind in ("pairs", "pairs_ends")]
    notes = dict[str, Any]()
    with whole_file(files[0]) as pairs, whole_file(files[1]) as ends:
        dealer = Dealer(pairs, partitions, dtype)
        yield dealer, notes
        save(ends, dealer.finish())
        notes |= {files[0].name: pairs.note(), files[1].name: ends.note()}


def _file(directory: Path, kind: str, number: int) -> Path:
    return directory / shard_name(kind, number, "bin")


def _nodes(edges: Array, end: str) -> Array:
    found = np.empty(len(edges), _BYTES)
    for name, _ in PLACE:
        found[name] = edges[f"{end}_{name}"]
    nodes: Array = found.view(_NODE)
    return nodes


def _keys(nodes: Array) -> Array:
    """Return the partitions' keys of nodes."""
    places = np.ascontiguousarray(nodes).view(_BYTES)
    shard, row = places["shard"].astype(np.uint64), places["row"].astype(np.uint64)
    return mixed(places["id_low"].astype(np.uint64) ^ mixed((shard << np.uint64(32)) | row))


def _unique(pairs: Array) -> Array:
    """Return each pair once, in order of node and neighbour."""
    ordered: Array = pairs[np.lexsort((pairs["near"], pairs["at"]))]
    found: Array = ordered[begins(ordered["at"], ordered["near"])]
    return found


def _pairs(at: Array, near: Array) -> Array:
    found = np.empty(len(at), PAIR)
    found["key"], found["at"], found["near"] = _keys(at), at, near
    return found
