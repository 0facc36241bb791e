"""Preference pairs as R1 makes them: judged several times in random order, a clear margin kept, lengths balanced.

Source: DeepSeek-R1 (2501.12948v2) section B.3 on the helpful reward model: four judgements with random A/B order, their
mean, pairs with a margin above 1 kept, and chosen and rejected of comparable length.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from framework.bounds import Bound, PositiveInt, bounded
from framework.data.layouts.messages import Message
from framework.data.selection import Drop
from framework.data.shuffle import seed_of


@dataclass(frozen=True)
@bounded
class PairConfig:
    """How often a pair is judged, and which pairs stay. Defaults: R1 v2; the ratio of lengths is ours."""

    judgements: PositiveInt = 4
    least_margin: Annotated[float, Bound(least=0, below=2)] = 1.0  # the mean margin must be above it; 2 is the largest
    longest_ratio: Annotated[float, Bound(least=1)] = 4.0  # of the longer text's characters to the shorter's
    balance: bool = True  # as many pairs with the chosen text longer as with it shorter


@dataclass(frozen=True)
class Candidate:
    """Two responses to one prompt, and by how much the first was judged better than the second."""

    id: str
    messages: tuple[Message, ...]  # ends with the user's question
    first: str
    second: str
    margins: tuple[float | None, ...]  # of the first; one a judgement, in the judge's units; None: it gave no verdict


@dataclass(frozen=True)
class Pair:
    """A pair that stays."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float  # above 0


def first_is_shown_first(candidate: str, judgement: int, seed: int) -> bool:
    """Whether a judgement shows the first response as A: by chance, but always the same chance."""
    return random.Random(seed_of(seed, "order", candidate, judgement)).random() < 0.5


def choose_pairs(candidates: Iterable[Candidate], config: PairConfig) -> tuple[list[Pair], list[Drop]]:
    """Return the pairs that stay, in their order, and why each of the others goes.

    Reasons: equal (both say the same), no_verdict (fewer than half of the judgements were any), unclear (the margin is
    too small), contradictory (unclear because the judgements disagree; or the same two texts were chosen the other way
    round elsewhere), duplicate (the same pair again), lengths, unbalanced.
    """
    pairs, dropped = list[Pair](), list[Drop]()
    for candidate in candidates:
        found = _judged(candidate, config)
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            dropped.append(Drop(candidate.id, found))
    pairs, refused = consistent(pairs)
    dropped += refused
    if config.balance:
        pairs, surplus = balanced(pairs)
        dropped += [Drop(pair.id, "unbalanced") for pair in surplus]
    return pairs, dropped


def _judged(candidate: Candidate, config: PairConfig) -> Pair | str:
    if candidate.first.split() == candidate.second.split():
        return "equal"
    known = [margin for margin in candidate.margins if margin is not None]
    if 2 * len(known) < max(config.judgements, 1):
        return "no_verdict"
    margin = sum(known) / len(known)
    if abs(margin) <= config.least_margin:
        signs = {value > 0 for value in known if value}
        return "contradictory" if len(signs) == 2 else "unclear"
    chosen, rejected = candidate.first, candidate.second
    if margin < 0:
        chosen, rejected = rejected, chosen
    shorter, longer = sorted((len(chosen), len(rejected)))
    if longer > config.longest_ratio * max(shorter, 1):
        return "lengths"
    return Pair(candidate.id, candidate.messages, chosen, rejected, abs(margin))


def consistent(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Drop]]:
    """Return the pairs without those that say the opposite of another one, and without repeats; and why each went."""
    keys = [(repr(pair.messages), pair.chosen.strip(), pair.rejected.strip()) for pair in pairs]
    known, kept, dropped = set(keys), dict[tuple[str, str, str], Pair](), list[Drop]()
    for pair, key in zip(pairs, keys, strict=True):
        if (key[0], key[2], key[1]) in known:
            dropped.append(Drop(pair.id, "contradictory"))
        elif key in kept:
            dropped.append(Drop(pair.id, "duplicate"))
        else:
            kept[key] = pair
    return list(kept.values()), dropped


def balanced(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return pairs of which as many choose the longer text as the shorter one, and those left out: the least clear.

    A reward model that sees only these cannot win by counting characters.
    """
    longer = [pair for pair in pairs if len(pair.chosen) > len(pair.rejected)]
    shorter = [pair for pair in pairs if len(pair.chosen) < len(pair.rejected)]
    many, few = (longer, shorter) if len(longer) > len(shorter) else (shorter, longer)
    surplus = {pair.id for pair in sorted(many, key=lambda pair: (pair.margin, pair.id))[: len(many) - len(few)]}
    return [pair for pair in pairs if pair.id not in surplus], [pair for pair in pairs if pair.id in surplus]
