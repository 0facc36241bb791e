"""A model's Codeforces rating from the problems that it solves: Elo, as contests rate people. Pure functions.

Of a contest whose participants are known, it is the rating at which the model's rank would be the expected one. Without
them it is the rating at which as many problems would be solved as are: a problem's own rating is that of people of whom
half solve it.

Sources: Mirzayanov, Open Codeforces Rating System (codeforces.com/blog/entry/20762): the chance to beat somebody, the
expected place; CodeElo (2501.01257): a model's rank in past contests. R1 gives the figure (R1 v2 D.1) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework.stages.eval_numbers import JudgedGroup, verdicts
from framework.types import Measured

LOWEST, HIGHEST = 0.0, 4000.0  # a rank of 1, or every problem solved, has no highest rating


@dataclass(frozen=True)
class Standings:
    """Who took part in a contest: the rating of each before it, and how many problems each solved."""

    ratings: tuple[float, ...]
    solved: tuple[int, ...]

    def rank(self, solved: float) -> float:
        """Return the place of somebody who solved so many: in the middle of those who solved as many; 1 is best."""
        better, equal = sum(s > solved for s in self.solved), sum(s == solved for s in self.solved)
        return 1 + better + equal / 2


def beats(rating: float, other: float) -> float:
    """Chance to do better than somebody of rating `other`, or to solve a problem of that rating.

    1 / (1 + 10^((other - rating) / 400)): 0.5 at equal ratings, 10/11 at 400 more.
    """
    return 1 / (1 + 10 ** ((other - rating) / 400))


def expected_rank(rating: float, others: Sequence[float]) -> float:
    """Return 1 and the chances of the others to do better: 2 against one of equal rating and two halves of it."""
    return 1 + sum(beats(other, rating) for other in others)


def rating_at_rank(rank: float, others: Sequence[float]) -> float:
    """Return the rating whose expected rank is `rank`."""
    return _where_zero(lambda rating: rank - expected_rank(rating, others))


def rating_of_problems(problems: Sequence[tuple[float, float]]) -> float:
    """Return the likeliest rating of somebody who solved these shares of problems, given as (rating, share).

    The likelihood is highest where the expected number of solved problems is the number that was solved.
    """
    return _where_zero(lambda rating: sum(beats(rating, hard) - share for hard, share in problems))


def contest_rating(
    groups: Sequence[JudgedGroup], right_by: Sequence[str], standings: Mapping[str, Standings]
) -> Measured | None:
    """Return the rating from prompts with columns contest_id and rating; None where no prompt has what is needed.

    With standings: the mean over contests and responses, and its standard error over contests. Without: of all problems
    together, the error by leaving out a contest at a time (jackknife).
    """
    by_contest: dict[str, list[tuple[float, list[float]]]] = {}
    for group in groups:
        columns = group.scored.group.prompt.columns
        rating, contest = columns.get("rating"), columns.get("contest_id")
        solved = [float(value >= 1) for value in verdicts(group.scored, right_by) if value is not None]
        if contest is not None and solved and (standings or isinstance(rating, int | float)):
            by_contest.setdefault(str(contest), []).append((float(rating or 0), solved))
    if standings:
        known = [_ranked(found, standings[name]) for name, found in by_contest.items() if name in standings]
        error = float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
        return Measured(float(np.mean(known)), error, len(known)) if known else None
    if not by_contest:
        return None
    rest = [_together([f for other, f in by_contest.items() if other != name]) for name in by_contest]
    n = len(by_contest)
    error = math.sqrt((n - 1) * float(np.var(rest))) if n > 1 else None
    return Measured(_together(list(by_contest.values())), error, n)


def _ranked(problems: Sequence[tuple[float, list[float]]], standings: Standings) -> float:
    """The mean rating of the responses, each of which is a participant of its own."""
    k = min(len(solved) for _, solved in problems)
    totals = [sum(solved[place] for _, solved in problems) for place in range(k)]
    return float(np.mean([rating_at_rank(standings.rank(total), standings.ratings) for total in totals]))


def _together(contests: Sequence[Sequence[tuple[float, list[float]]]]) -> float:
    found = [(rating, float(np.mean(solved))) for contest in contests for rating, solved in contest]
    return rating_of_problems(found) if found else LOWEST


def _where_zero(rising: Callable[[float], float]) -> float:
    """Where a function that rises with the rating is 0, to a hundredth; the nearer bound if it is nowhere."""
    low, high = LOWEST, HIGHEST
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
