"""Random orders and samples that depend on a seed and an epoch alone, so that any rank can resume anywhere."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

# Items up to which an order is drawn as a table, of 8 bytes each on every rank: V3's 3.6e9 rows would take 29 GB.
_TABLE = 2**22
T = TypeVar("T")
_ROUNDS = 4  # Luby and Rackoff 1988: enough for a permutation that is hard to tell from a random one


def shuffled(seed: int, place: int, size: int) -> int:
    """Return which of `size` items stands at `place` of an endless stream; each epoch has an order of its own."""
    epoch, offset = divmod(place, size)
    return int(_order(seed, epoch, size)[offset]) if size <= _TABLE else _permuted(f"{seed} {epoch}", offset, size)


def sampled(items: Iterable[T], size: int, wanted: int, seed: int) -> Iterator[T]:
    """Yield `wanted` of `size` items in their order, every choice as likely as another; all where there are fewer.

    Selection sampling (Knuth, volume 2, algorithm S): nothing is held in memory.
    """
    draw = random.Random(seed)
    for place, item in enumerate(items):
        if draw.random() * (size - place) < wanted:
            wanted -= 1
            yield item


def seed_of(*parts: int | str) -> int:
    """Return a seed of 62 bits made of `parts`; those of other parts are unrelated to it.

    G responses to one prompt count on from it, which neither overflows 64 bits nor meets another prompt's seeds.
    """
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(size)


def _permuted(key: str, item: int, size: int) -> int:
    """Return the place of `item` in a permutation of range(size) that is computed item by item.

    A Feistel network permutes the least even number of bits that holds them; what falls outside goes through it again
    (Black and Rogaway 2002, cycle walking).
    """
    half = ((size - 1).bit_length() + 1) // 2
    while True:
        left, right = item >> half, item & ((1 << half) - 1)
        for turn in range(_ROUNDS):
            digest = hashlib.blake2b(f"{key} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & ((1 << half) - 1))
        item = left << half | right
        if item < size:
            return item
