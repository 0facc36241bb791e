"""A Codeforces rating by hand: expected places, ranks among others, problems by their own ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.standings import read_standings
from framework.errors import UserError
from framework.stages.rating import (
    Standings,
    beats,
    contest_rating,
    expected_rank,
    rating_at_rank,
    rating_of_problems,
)
from framework.types import Prompt
from tests.unit.stages.test_evaluate import scored

BY = ("accuracy",)


def test_chances_and_places_by_hand() -> None:
    assert beats(1500, 1500) == 0.5
    assert beats(1900, 1500) == pytest.approx(10 / 11)  # 400 points are ten to one
    assert expected_rank(1500, [1500, 1500]) == 2.0
    assert expected_rank(1500, [1900, 1100]) == pytest.approx(1 + 10 / 11 + 1 / 11)
    assert expected_rank(3503, [3503 - 400] * 11) == pytest.approx(2.0)  # eleven with a chance of 1/11 each


def test_the_rating_is_the_one_at_which_the_place_is_expected() -> None:
    assert rating_at_rank(2.0, [1500, 1500]) == pytest.approx(1500, abs=0.01)
    assert rating_at_rank(2.0, [1100] * 11) == pytest.approx(1500, abs=0.01)
    assert rating_at_rank(1.0, [1500]) == pytest.approx(4000, abs=0.01)  # nobody is expected first of all
    assert rating_at_rank(2.0, [1500]) == pytest.approx(0, abs=0.1)


def test_problems_have_ratings_too() -> None:
    assert rating_of_problems([(1200, 0.5)]) == pytest.approx(1200, abs=0.01)
    assert rating_of_problems([(1200, 10 / 11)]) == pytest.approx(1600, abs=0.01)
    assert rating_of_problems([(1000, 1.0), (1400, 0.0)]) == pytest.approx(1200, abs=0.01)
    assert rating_of_problems([(1000, 0.0)]) == pytest.approx(0, abs=0.1)


@given(st.lists(st.floats(800, 3500), min_size=1, max_size=30), st.floats(500, 3500))
def test_expected_place_and_rating_undo_each_other(others: list[float], rating: float) -> None:
    assert rating_at_rank(expected_rank(rating, others), others) == pytest.approx(rating, abs=0.5)


def test_a_rank_lies_in_the_middle_of_those_who_solved_as_many() -> None:
    standings = Standings((1500, 1600, 1700, 1800), (1, 2, 2, 4))
    assert [standings.rank(solved) for solved in (0, 1, 2, 3, 4, 5)] == [5, 4.5, 3, 2, 1.5, 1]


def problem(contest: str, rating: float, *right: float) -> Any:
    columns = {"contest_id": contest, "rating": rating}
    return scored(Prompt(f"{contest}{rating}", "?", "code", "", columns=columns), *({"accuracy": r} for r in right))


def test_contests_with_and_without_participants() -> None:
    groups = [problem("a", 1000, 1, 1), problem("a", 1400, 0, 0), problem("b", 1200, 1, 0)]
    plain = contest_rating(groups, BY, {})
    assert plain is not None
    assert (plain.mean, plain.n_prompts) == (pytest.approx(1200, abs=0.01), 2)
    assert plain.error == pytest.approx(0, abs=0.02)  # either contest by itself says 1200 as well
    equal = Standings((1500, 1500), (2, 0))  # one problem solved: between the two
    found = contest_rating(groups, BY, {"a": equal, "b": Standings((1500, 1500), (3, 3))})
    assert found is not None
    low = 0.0  # behind both
    assert found.mean == pytest.approx((1500 + low) / 2, abs=0.1)
    assert found.error == pytest.approx(np.std([1500, low], ddof=1) / np.sqrt(2), abs=0.1)
    assert contest_rating([scored(Prompt("m", "?", "math", "4"), {"accuracy": 1.0})], BY, {}) is None
    assert contest_rating(groups, BY, {"z": equal}) is None


def answers(directory: Path, **change: Any) -> str:
    """Both of the API's answers for one contest."""
    people = (("ann", "CONTESTANT", (500, 0)), ("bob", "CONTESTANT", (500, 800)), ("eve", "VIRTUAL", (500, 800)))
    rows = [
        {"party": {"members": [{"handle": name}], "participantType": kind},
         "problemResults": [{"points": each} for each in points]}
        for name, kind, points in people
    ]  # fmt: skip
    ratings = (("ann", 1400), ("bob", 1900))
    found: dict[str, Any] = {
        "standings": {"contest": {"id": 852}, "rows": rows},
        "changes": [{"contestId": 852, "handle": name, "oldRating": old} for name, old in ratings],
    }
    for name, result in (found | change).items():
        if result is not None:
            (directory / f"{name}.json").write_text(json.dumps({"status": "OK", "result": result}))
    return str(directory / "*.json")


def test_the_api_s_answers_are_joined_by_handle(tmp_path: Path) -> None:
    assert read_standings(answers(tmp_path)) == {"852": ((1400.0, 1900.0), (1, 2))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"changes": None}, r"contest 852 has no contest\.ratingChanges among the files"),
        ({"standings": None}, r"contest 852 has no contest\.standings among the files"),
        (
            {"changes": [{"contestId": 852}]},
            r"changes\.json: got .*'oldRating'.*; must be Codeforces' answer",
        ),
        ({"standings": "FAILED"}, r"standings\.json: got 'TypeError: result is str'"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_standings(answers(tmp_path, **change))
