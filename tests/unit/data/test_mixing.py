from __future__ import annotations

from collections.abc import Mapping

import pytest

from framework.data.mixing import mix, mixed_sizes
from framework.errors import UserError


@pytest.mark.parametrize(
    ("available", "shares", "sizes"),
    [
        ({"a": 30, "b": 30}, {"a": 3, "b": 1}, {"a": 30, "b": 10}),
        ({"a": 10, "b": 1000}, {"a": 0.5, "b": 0.5}, {"a": 10, "b": 10}),
        ({"a": 10, "b": 7}, {"a": 1, "b": 0}, {"a": 10, "b": 0}),
        ({"a": 600_000, "b": 250_000}, {"a": 600, "b": 200}, {"a": 600_000, "b": 200_000}),
        ({"a": 3, "b": 1}, {"a": 1000, "b": 1}, {"a": 3, "b": 1}),  # a share above 0 is never rounded away
        ({"a": 0, "b": 4}, {"a": 0, "b": 1}, {"a": 0, "b": 4}),
    ],
)
def test_the_largest_mix_of_these_shares(
    available: Mapping[str, int], shares: Mapping[str, float], sizes: Mapping[str, int]
) -> None:
    assert mixed_sizes(available, shares, "stage.mix.shares") == sizes


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"a": 1}, "must give a share to each of a, b"),
        ({"a": 1, "b": 1, "c": 1}, "nothing else"),
        ({"a": 1, "b": -1}, "stage.mix.shares.b: got -1"),
        ({"a": 0, "b": 0}, "some set a share above 0"),
        ({"a": 1, "b": 1}, "the b set is empty"),
    ],
)
def test_shares_that_cannot_be_are_refused_by_name(shares: Mapping[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        mixed_sizes({"a": 5, "b": 0}, shares, "stage.mix.shares")


def test_nothing_is_used_twice_and_the_seed_decides() -> None:
    sets = {"a": range(100), "b": range(100, 120)}
    sizes = {"a": 40, "b": 20}
    rows = mix(sets, sizes, 0)
    assert len(set(rows)) == len(rows) == 60
    assert sum(row >= 100 for row in rows) == 20
    assert mix(sets, sizes, 0) == rows != mix(sets, sizes, 1)
    assert rows != sorted(rows)
