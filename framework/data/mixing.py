"""Sets of rows mixed to given shares, by a seed, and nothing used twice."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from framework.errors import UserError

T = TypeVar("T")


def mixed_sizes(available: Mapping[str, int], shares: Mapping[str, float], where: str) -> dict[str, int]:
    """Return how many of each set make the largest mix of these shares; shares need not sum to 1.

    Available {"reasoning": 30, "general": 30} at shares {"reasoning": 3, "general": 1} give 30 and 10. A set of share 0
    stays out. Raises UserError, naming `where`, for sets and shares of different names, a share below 0, shares that
    are all 0, and a set with a share and no rows.
    """
    check_shares(tuple(available), shares, where)
    used = {name: share for name, share in shares.items() if share}
    empty = next((name for name in used if not available[name]), None)
    if empty is not None:
        raise UserError(f"{where}.{empty}", shares[empty], f"the {empty} set is empty: give it share 0, or fill it")
    scale = min(available[name] / share for name, share in used.items())
    return {name: max(1, int(shares[name] * scale + 1e-9)) if name in used else 0 for name in available}


def check_shares(names: Sequence[str], shares: Mapping[str, float], where: str) -> None:
    """Raise UserError, naming `where`, for shares that no sets of these names can have, whatever is in them."""
    if set(shares) != set(names):
        raise UserError(where, dict(shares), f"must give a share to each of {', '.join(names)}, and to nothing else")
    wrong = next((name for name, share in shares.items() if share < 0), None)
    if wrong is not None:
        raise UserError(f"{where}.{wrong}", shares[wrong], "must be at least 0")
    if not any(shares.values()):
        raise UserError(where, dict(shares), "must give some set a share above 0")


def mix(sets: Mapping[str, Sequence[T]], sizes: Mapping[str, int], seed: int) -> list[T]:
    """Return so many different rows of each set, in one random order that depends on the seed alone."""
    draw = random.Random(seed)
    rows = [row for name, found in sets.items() for row in draw.sample(list(found), sizes[name])]
    draw.shuffle(rows)
    return rows
