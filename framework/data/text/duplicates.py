"""Duplicates as a shuffle: signatures by shard, dealt to partitions by their hash, the smallest id of each kind stays.

Exact: one hash of the text. Near: MinHash (Broder 1997) of word shingles, bands of it as LSH keys (Leskovec, Rajaraman,
Ullman, chapter 3), candidates compared by four bits of every permutation's value (b-bit minwise hashing: Li and König
2010). All arrays are [N] of records. What stays depends on texts and ids alone, not on how they are cut into shards
and partitions or on the order in which those are worked on.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Where a document stands, in the order in which one of several copies is kept: train before validation, then the id;
# copies of one id are the same text, of which the first stays.
PLACE = [("split", "<u1"), ("id_high", "<u8"), ("id_low", "<u8"), ("shard", "<u4"), ("row", "<u4")]
EXACT = np.dtype([("key", "<u8"), ("check", "<u8"), *PLACE])
EDGE = np.dtype([(f"{end}_{name}", kind) for end in ("first", "other") for name, kind in PLACE])
DROP = np.dtype([("shard", "<u4"), ("row", "<u4"), ("of_high", "<u8"), ("of_low", "<u8")])
_BITS = 4  # kept of each permutation's value
_BLOCK = 512  # shingles hashed at once, so that a long document takes no more memory


def id_halves(document: str) -> tuple[int, int]:
    """Return an id as two integers that sort as it does; ids that are no 128-bit hashes are hashed."""
    try:
        value = int(document, 16) if len(document) == 32 else None
    except ValueError:
        value = None
    if value is None:
        value = int.from_bytes(hashlib.blake2b(document.encode(), digest_size=16).digest())
    return value >> 64, value & (2**64 - 1)


def id_of(high: int, low: int) -> str:
    """Return the id whose halves these are."""
    return f"{(int(high) << 64) | int(low):032x}"


@dataclass(frozen=True)
class MinHash:
    """Signatures of `permutations` values, and the bands in which documents of similarity `threshold` may meet."""

    permutations: int
    shingle_words: int
    threshold: float

    @cached_property
    def bands(self) -> tuple[int, int]:
        """(bands, rows): misses weigh nine times what false candidates do, which are found out by the comparison."""
        return _bands(self.threshold, self.permutations)

    @cached_property
    def _room(self) -> npt.NDArray[np.uint64]:
        return np.empty((_BLOCK, self.permutations), np.uint64)

    @property
    def dtype(self) -> np.dtype[Any]:
        """One entry: a document in one of its bands."""
        return np.dtype([("key", "<u8"), *PLACE, ("sketch", "u1", (self.permutations * _BITS // 8,))])

    def signature(self, words: Sequence[str]) -> npt.NDArray[np.uint32]:
        """Return the smallest value [K] of each permutation over the shingles of some words."""
        hashes = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
        size = min(self.shingle_words, len(words))
        shingles = hashes[: len(words) - size + 1]
        for place in range(1, size):
            shingles = shingles * np.uint64(0x9E3779B97F4A7C15) + hashes[place : len(words) - size + 1 + place]
        shingles = mixed(shingles)
        factors, terms = _permutations(self.permutations)
        smallest = np.full(self.permutations, 2**64 - 1, np.uint64)
        for start in range(0, len(shingles), _BLOCK):
            block = shingles[start : start + _BLOCK, None]
            values = self._room[: len(block)]  # in place: a fresh array costs three times what is computed in it
            np.multiply(block, factors, out=values)
            np.add(values, terms, out=values)
            np.minimum(smallest, values.min(0), out=smallest)
        return (smallest >> np.uint64(32)).astype(np.uint32)

    def entries(self, signatures_NK: Array, places_N: Array) -> Array:
        """Return the entries [N x bands] of documents: keys of their bands, where they stand, their sketches."""
        (bands, rows), (size, _) = self.bands, signatures_NK.shape
        values = signatures_NK[:, : bands * rows].reshape(size, bands, rows).astype(np.uint64)
        keys = np.broadcast_to(np.arange(1, bands + 1, dtype=np.uint64), (size, bands))
        for row in range(rows):
            keys = mixed(keys * np.uint64(0x100000001B3) + values[:, :, row])
        low = (signatures_NK & np.uint32(2**_BITS - 1)).astype(np.uint8)
        found = np.empty((size, bands), self.dtype)
        found["key"], found["sketch"] = keys, (low[:, None, 0::2] << _BITS) | low[:, None, 1::2]
        for name, _ in PLACE:
            found[name] = places_N[name][:, None]
        return found.reshape(-1)

    def alike(self, one: Array, other: Array) -> npt.NDArray[np.bool_]:
        """Return [N] whether the similarity of each two sketches reaches the threshold, chance agreement taken off."""
        different = one ^ other
        same = (different & 15 == 0).sum(-1) + (different & 240 == 0).sum(-1)
        chance = 2.0**-_BITS
        estimate: npt.NDArray[np.float64] = (same / self.permutations - chance) / (1 - chance)
        # An estimate is a multiple of 1/K above the threshold or below it; 1e-9 keeps rounding out.
        reached: npt.NDArray[np.bool_] = estimate >= self.threshold - 1e-9
        return reached


def exact_drops(entries: Array) -> Array:
    """Return the drops among all entries (EXACT) of a partition: of equal texts the first place stays."""
    entries = entries[np.lexsort((*_order(entries), entries["check"], entries["key"]))]
    new = begins(entries["key"], entries["check"])
    return dropped(entries[~new], entries[first_of_group(new)[~new]])


def near_edges(entries: Array, minhash: MinHash) -> Array:
    """Return (EDGE) which documents of a partition's bands are alike: each with the first of its band that is."""
    entries = entries[np.lexsort((*_order(entries), entries["key"]))]
    found = []
    while len(entries):
        new = begins(entries["key"])
        firsts = first_of_group(new)
        alike = ~new & minhash.alike(entries["sketch"], entries["sketch"][firsts])
        found.append(_edges(entries[firsts[alike]], entries[alike]))
        entries = entries[~new & ~alike]  # those that are not alike the first may be alike among themselves
    return np.unique(np.concatenate(found)) if found else np.empty(0, EDGE)


def without_copies(entries: Array) -> tuple[Array, Array]:
    """Return entries without those that equal another in band and sketch, and the pairs (EDGE) of what is left out.

    What is alike one of them is alike all, so the clusters stay as they were: a text that a corpus has millions of
    times takes the memory of one.
    """
    sketch = np.ascontiguousarray(entries["sketch"]).view(f"S{entries['sketch'].shape[1]}")[:, 0]
    order = np.lexsort((*_order(entries), sketch, entries["key"]))
    entries, sketch = entries[order], sketch[order]
    new = begins(entries["key"], sketch)
    return entries[new], _edges(entries[first_of_group(new)[~new]], entries[~new])


def component_drops(edges: Array) -> tuple[Array, dict[int, int]]:
    """Return the drops of all edges, sorted by shard and row, and size of cluster -> how many there are.

    Documents that are connected, by whatever chain, are one cluster: its first place stays.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(edges):
        return np.empty(0, DROP), {}
    ends = [np.rec.fromarrays([edges[f"{end}_{name}"] for name, _ in PLACE], dtype=PLACE) for end in ("first", "other")]
    places, index = np.unique(np.concatenate([np.asarray(end) for end in ends]), return_inverse=True)  # in their order
    size = len(places)
    graph = coo_matrix((np.ones(len(edges), bool), (index[: len(edges)], index[len(edges) :])), (size, size))
    count, component = connected_components(graph, directed=False)
    first = np.full(count, size)
    np.minimum.at(first, component, np.arange(size))
    goes = first[component] != np.arange(size)
    sizes, times = np.unique(np.bincount(component), return_counts=True)
    clusters = dict(zip(sizes.tolist(), times.tolist(), strict=True))
    return dropped(places[goes], places[first[component[goes]]]), clusters


def _order(entries: Array) -> tuple[Array, ...]:
    """Keys of a lexsort by place."""
    return tuple(entries[name] for name, _ in reversed(PLACE))


def begins(*columns: Array) -> npt.NDArray[np.bool_]:
    """Return [N] whether each element begins a group: it differs from the one before in a column; groups lie together.

    For `first_of_group`.
    """
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def first_of_group(new: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return [N] the index at which each element's group begins; `new` [N]: whether it begins one."""
    starts = np.flatnonzero(new)
    found: npt.NDArray[np.intp] = starts[np.cumsum(new) - 1]
    return found


def dropped(goes: Array, stays: Array) -> Array:
    """Return the drops (DROP) of places that go, each for one that stays; sorted by shard and row."""
    found = np.empty(len(goes), DROP)
    found["shard"], found["row"] = goes["shard"], goes["row"]
    found["of_high"], found["of_low"] = stays["id_high"], stays["id_low"]
    ordered: Array = found[np.lexsort((found["row"], found["shard"]))]
    return ordered


def _edges(first: Array, other: Array) -> Array:
    found = np.empty(len(first), EDGE)
    for name, _ in PLACE:
        found[f"first_{name}"], found[f"other_{name}"] = first[name], other[name]
    return found


def mixed(values: Array) -> npt.NDArray[np.uint64]:
    """Spread every bit over all others (the finalizer of SplitMix64: Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


@lru_cache(maxsize=4)
def _permutations(count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Odd factors and terms [K] of multiply-shift hashing (Dietzfelbinger 1997)."""
    rng = np.random.default_rng(1)
    factors, terms = rng.integers(0, 2**64, (2, count), np.uint64)
    return factors | np.uint64(1), terms


@lru_cache(maxsize=16)
def _bands(threshold: float, permutations: int) -> tuple[int, int]:
    below, above = np.linspace(0, threshold, 200), np.linspace(threshold, 1, 200)

    def cost(rows: int) -> float:
        bands = permutations // rows
        false = (1 - (1 - below**rows) ** bands).mean() * threshold
        missed = ((1 - above**rows) ** bands).mean() * (1 - threshold)
        return float(0.1 * false + 0.9 * missed)

    rows = min(range(1, permutations + 1), key=cost)
    return permutations // rows, rows
