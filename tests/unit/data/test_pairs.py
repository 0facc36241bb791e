from __future__ import annotations

import pytest

from framework.data.pairs import Candidate, Pair, PairConfig, balanced, choose_pairs, first_is_shown_first

ASKED = ({"role": "user", "content": "Hello?"},)
LOOSE = PairConfig(balance=False)


def candidate(*margins: float | None, name: str = "c", first: str = "Hello you!") -> Candidate:
    return Candidate(name, ASKED, first, "Go away.", margins)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (candidate(1, 1, 1, 1), "unclear"),  # R1: above 1
        (candidate(1, 1, 1, 0), "unclear"),
        (candidate(0, 0, 0, 0), "unclear"),
        (candidate(3, -3, 3, -3), "contradictory"),
        (candidate(None, None, None, 3), "no_verdict"),
        (candidate(), "no_verdict"),
        (candidate(3, 3, 3, 3, first="Go  away."), "equal"),
        (candidate(3, 3, 3, 3, first="word " * 40), "lengths"),
    ],
)
def test_a_pair_that_goes_has_a_reason(given: Candidate, reason: str) -> None:
    pairs, dropped = choose_pairs([given], LOOSE)
    assert not pairs
    assert [(drop.id, drop.reason) for drop in dropped] == [("c", reason)]


@pytest.mark.parametrize(
    ("margins", "chosen", "margin"),
    [((2, 2, 1, 1), "Hello you!", 1.5), ((-3, -3, -1, -1), "Go away.", 2.0), ((3, None, 3, None), "Hello you!", 3.0)],
)
def test_the_mean_of_the_judgements_decides(margins: tuple[float | None, ...], chosen: str, margin: float) -> None:
    (pair,), dropped = choose_pairs([candidate(*margins)], LOOSE)
    assert not dropped
    assert (pair.chosen, pair.margin) == (chosen, margin)
    assert {pair.chosen, pair.rejected} == {"Hello you!", "Go away."}


def test_opposite_verdicts_on_the_same_texts_both_go_and_repeats_once() -> None:
    given = [candidate(3, 3, 3, 3, name="a"), candidate(-3, -3, -3, -3, name="b"), candidate(3, 3, 3, 3, name="c")]
    pairs, dropped = choose_pairs(given, LOOSE)
    assert not pairs
    assert {drop.reason for drop in dropped} == {"contradictory"}
    pairs, dropped = choose_pairs([given[0], given[2]], LOOSE)
    assert [pair.id for pair in pairs] == ["a"]
    assert [(drop.id, drop.reason) for drop in dropped] == [("c", "duplicate")]


def test_as_many_pairs_choose_the_longer_text_as_the_shorter_and_the_least_clear_go() -> None:
    def pair(name: str, chosen: str, rejected: str, margin: float) -> Pair:
        return Pair(name, ASKED, chosen, rejected, margin)

    pairs = [
        pair("a", "longer", "short", 3), pair("b", "longer", "short", 1.5), pair("c", "longer", "short", 2),
        pair("d", "short", "longer", 2), pair("e", "equal", "alike", 9),
    ]  # fmt: skip
    kept, surplus = balanced(pairs)
    assert [pair.id for pair in kept] == ["a", "d", "e"]
    assert {pair.id for pair in surplus} == {"b", "c"}
    assert sum(len(p.chosen) - len(p.rejected) for p in kept) == 0


def test_what_stays_and_what_goes_add_up() -> None:
    given = [candidate(*[n % 5 - 2] * 4, name=str(n), first="Hello you" + "!" * n) for n in range(40)]
    pairs, dropped = choose_pairs(given, PairConfig())
    assert len(pairs) + len(dropped) == 40
    assert len({*(pair.id for pair in pairs), *(drop.id for drop in dropped)}) == 40
    assert pairs


def test_the_order_of_the_two_is_random_but_always_the_same() -> None:
    orders = [first_is_shown_first(str(n), k, 0) for n in range(100) for k in range(4)]
    assert orders == [first_is_shown_first(str(n), k, 0) for n in range(100) for k in range(4)]
    assert 150 < sum(orders) < 250
