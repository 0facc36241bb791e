"""Who took part in Codeforces contests, from files as its API answers: contest.standings and contest.ratingChanges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from framework.artifacts import read_json
from framework.data.sources import find_source
from framework.errors import UserError

KEY = "stage.evaluate.standings"


def read_standings(name: str) -> dict[str, tuple[tuple[float, ...], tuple[int, ...]]]:
    """Return contest id -> ratings before the contest and problems solved, a participant each.

    `name`: a folder or glob of JSON files, of each contest both answers. Raises UserError naming the file, or a contest
    of which one of the two is missing.
    """
    ratings: dict[str, dict[str, float]] = defaultdict(dict)
    solved: dict[str, dict[str, int]] = defaultdict(dict)
    for file in find_source(name, KEY).local:
        result = read_json(file).get("result")
        try:
            if isinstance(result, list):
                for change in result:
                    ratings[str(change["contestId"])][str(change["handle"])] = float(change["oldRating"])
            else:
                contest, rows = str(_mapping(result)["contest"]["id"]), _mapping(result)["rows"]
                solved[contest] |= {handle: count for row in rows for handle, count in _row(row)}
        except (KeyError, TypeError, ValueError) as error:
            allowed = "must be Codeforces' answer to contest.standings or contest.ratingChanges"
            raise UserError(str(file), f"{type(error).__name__}: {error}"[:80], allowed) from None
    for contest in sorted({*ratings, *solved}):
        if not ratings[contest].keys() & solved[contest].keys():
            lacks = "ratingChanges" if solved[contest] else "standings"
            raise UserError(KEY, name, f"contest {contest} has no contest.{lacks} among the files that fits")
    found = {}
    for contest, before in ratings.items():
        known = sorted(before.keys() & solved[contest].keys())
        found[contest] = (tuple(before[h] for h in known), tuple(solved[contest][h] for h in known))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"result is {type(value).__name__}")
    return value


def _row(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Each member of a party with its solved problems; those out of competition are left out."""
    party = row["party"]
    if party.get("participantType", "CONTESTANT") != "CONTESTANT":
        return []
    count = sum(float(result["points"]) > 0 for result in row["problemResults"])
    return [(str(member["handle"]), count) for member in party["members"]]
