"""Which tokens of a sequence a masked language model predicts, and what it sees in their place.

Everything follows from the sequence's own random generator, so that each epoch draws anew (RoBERTa's dynamic masking,
1907.11692 section 4.1), on any rank alike. Dimensions: T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt

from framework.bounds import Bound, PositiveInt, Probability, bounded
from framework.errors import UserError
from framework.types import Int32


@dataclass(frozen=True)
@bounded
class Masking:
    """BERT's (1810.04805 section 3.1): 15% predicted, of these 80% masked, 10% another token, 10% as they are."""

    rate: Annotated[float, Bound(above=0, most=1)] = 0.15
    masked: Probability = 0.8
    replaced: Probability = 0.1  # by any token; the rest is left
    longest: PositiveInt = 1  # n-gram: of length n with probability (1/n) / sum_k (1/k) (ALBERT section 3.1: 3)

    def __post_init__(self) -> None:
        if self.masked + self.replaced > 1:
            raise UserError("replaced", self.replaced, f"must be at most {1 - self.masked:g}: masked={self.masked:g}")

    def count(self, length: int) -> int:
        """How many of `length` tokens are predicted: known without a draw, so that all ranks know the whole batch's."""
        return min(length, max(1, round(self.rate * length)))


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    size: int
    mask: int
    special: tuple[int, ...]  # never predicted, never put in another's place

    @cached_property
    def ordinary(self) -> npt.NDArray[np.int64]:
        """All other ids."""
        return np.setdiff1d(np.arange(self.size), self.special)


def choose(
    learnable_T: npt.NDArray[np.bool_], wanted: int, longest: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Return [T] of the `wanted` positions to predict, in runs of up to `longest`, none of them not learnable."""
    places = np.flatnonzero(learnable_T)
    chosen_T = np.zeros(len(learnable_T), bool)
    if longest == 1:
        chosen_T[rng.choice(places, wanted, replace=False)] = True
        return chosen_T
    weights = 1 / np.arange(1, longest + 1)
    left = wanted
    for start in rng.permutation(places):
        if not left:
            break
        length = min(left, int(rng.choice(longest, p=weights / weights.sum())) + 1)
        run = slice(start, start + length)
        if learnable_T[run].all() and len(learnable_T[run]) == length and not chosen_T[run].any():
            chosen_T[run] = True
            left -= length
    if left:  # runs do not always fit into what is left
        chosen_T[rng.choice(np.flatnonzero(learnable_T & ~chosen_T), left, replace=False)] = True
    return chosen_T


def mask(
    ids_T: Int32, masking: Masking, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[Int32, npt.NDArray[np.bool_]]:
    """Return what the model sees [T] and which positions it predicts [T]. Special tokens are left as they are."""
    learnable_T = ~np.isin(ids_T, vocabulary.special)
    chosen_T = choose(learnable_T, masking.count(int(learnable_T.sum())), masking.longest, rng)
    draws_T, seen_T = rng.random(len(ids_T)), ids_T.copy()
    seen_T[chosen_T & (draws_T < masking.masked)] = vocabulary.mask
    other_T = chosen_T & (draws_T >= masking.masked) & (draws_T < masking.masked + masking.replaced)
    seen_T[other_T] = rng.choice(vocabulary.ordinary, int(other_T.sum()))
    return seen_T, chosen_T
