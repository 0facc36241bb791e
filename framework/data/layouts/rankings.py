"""Rankings: several answers to one prompt, ordered by how good they are, as one row; read as all pairs of them.

answers             texts, messages, or objects with answer (response, content) and rank or score; `completions` and
                    `responses` are names too
ranks, scores       beside them, one an answer: of ranks the lowest is best, of scores the highest

Without either the answers stand best first. Two of one rank are a tie, of which nothing is learned. Ranks and scores of
one row that order two answers differently are an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from framework.data.layouts.columns import Field
from framework.data.layouts.messages import Message, read_messages
from framework.errors import UserError

ANSWERS = Field("answers", ("completions", "responses", "rankings"))
_TEXTS, _RANKS = ("answer", "response", "content", "text"), ("rank", "ranks")
_SCORES = ("score", "scores", "rating", "overall_score")  # the last is UltraFeedback's


@dataclass(frozen=True)
class Ranked:
    """Answers to one prompt with how good each is: of two the higher is better, equal ones are a tie."""

    answers: tuple[Message, ...]
    goodness: tuple[float, ...]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Places of the better and the worse one, of all pairs that are no ties."""
        for a, b in combinations(range(len(self.answers)), 2):
            if self.goodness[a] != self.goodness[b]:
                yield (a, b) if self.goodness[a] > self.goodness[b] else (b, a)

    @property
    def ties(self) -> int:
        """Pairs of one rank."""
        return len(self.answers) * (len(self.answers) - 1) // 2 - sum(1 for _ in self.pairs())


def read_ranking(fields: Mapping[str, Any], column: str, where: str) -> Ranked:
    """Return the ranking in a row; raises UserError for a single answer, one that is there twice, or no numbers."""
    given = fields[column]
    if not isinstance(given, list | tuple) or len(given) < 2:
        count = len(given) if isinstance(given, list | tuple) else given
        raise UserError(f"{where}: {column}", count, "must rank at least two answers")
    answers = tuple(_answer(one, f"{where}: {column}[{place}]") for place, one in enumerate(given))
    known = [json.dumps(answer, sort_keys=True, ensure_ascii=False) for answer in answers]
    for place, text in enumerate(known):
        if text in known[:place]:
            allowed = f"is answer {known.index(text)} again: a ranking holds each once"
            raise UserError(f"{where}: {column}[{place}]", answers[place].get("content"), allowed)
    ranks, scores = (_numbers(fields, given, names, f"{where}: {names[0]}") for names in (_RANKS, _SCORES))
    by_score = None if scores is None else Ranked(answers, scores)
    by_rank = Ranked(answers, tuple(-rank for rank in ranks or range(len(answers))))
    if by_score is None or ranks is None:
        return by_rank if by_score is None else by_score
    if turned := set(by_score.pairs()) & {(worse, better) for better, worse in by_rank.pairs()}:
        better, worse = min(turned)
        numbers = [[int(value) if value.is_integer() else value for value in side] for side in (scores or (), ranks)]
        allowed = f"must agree with ranks {numbers[1]}: they turn answers {better} and {worse} around"
        raise UserError(f"{where}: scores", numbers[0], allowed)
    return by_rank


def _answer(one: Any, where: str) -> Message:
    if isinstance(one, Mapping) and "role" not in one:
        one = next((one[name] for name in _TEXTS if name in one), None)
    if isinstance(one, str):
        return {"role": "assistant", "content": one}
    found = read_messages([one], where) if isinstance(one, Mapping) else ()
    if len(found) != 1 or found[0]["role"] != "assistant":
        raise UserError(where, one, f"must be a text, an assistant's message, or hold one of {', '.join(_TEXTS)}")
    return found[0]


def _numbers(fields: Mapping[str, Any], given: Any, names: tuple[str, ...], where: str) -> tuple[float, ...] | None:
    """A number for each answer: from a column of the row, or inside the answers."""
    found = next((fields[name] for name in names if fields.get(name) is not None), None)
    if found is None:
        inside = [
            next((one[n] for n in names if n in one), None) if isinstance(one, Mapping) else None for one in given
        ]
        if all(value is None for value in inside):
            return None
        found = inside
    wrong = not isinstance(found, list | tuple) or len(found) != len(given)
    if wrong or any(isinstance(value, bool) or not isinstance(value, int | float) for value in found):
        raise UserError(where, found, f"must be a number for each of the {len(given)} answers")
    return tuple(map(float, found))
