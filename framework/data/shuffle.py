"""Random orders that depend on a seed and an epoch alone, so that any rank can resume anywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


def shuffled(seed: int, place: int, size: int) -> int:
    """Return which of `size` items stands at `place` of an endless stream; each epoch has an order of its own."""
    epoch, offset = divmod(place, size)
    return int(_order(seed, epoch, size)[offset])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(size)
