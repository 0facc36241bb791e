"""The published quality rules on texts made to break each of them alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from framework.data.text.filters import c4, c4_lines, fineweb, gopher_quality, gopher_repetition
from framework.data.text.personal import scrub

RNG = random.Random(0)
PLAIN = "The people of the town have to be with that old bridge and the river."
WORDS = ["".join(RNG.choices("abcdefghijklmnop", k=5)) for _ in range(108)]
SENTENCES = [
    f"{a} {b} the {c} {d} and {e} {f} of {g} {h} {i}."
    for a, b, c, d, e, f, g, h, i in zip(*[iter(WORDS)] * 9, strict=True)
]
GOOD = "\n".join(SENTENCES)


@pytest.mark.parametrize("rule", [c4, gopher_quality, gopher_repetition, fineweb])
def test_plain_prose_stays(rule: Callable[[str], str | None]) -> None:
    assert rule(GOOD) is None


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        (c4, GOOD + " Lorem ipsum dolor.", "c4_lorem_ipsum"),
        (c4, GOOD + " if (x) { y }", "c4_curly_bracket"),
        (c4, "One sentence. Another one.", "c4_few_sentences"),
        (gopher_quality, PLAIN, "gopher_word_count"),
        (gopher_quality, "a " * 30 + GOOD[:200], "gopher_word_length"),
        (gopher_quality, GOOD + " #tag" * 40, "gopher_symbols"),
        (gopher_quality, "\n".join(f"- {line}" for line in SENTENCES), "gopher_bullets"),
        (gopher_quality, "\n".join(f"{line} …" for line in SENTENCES[:9]) + GOOD, "gopher_ellipses"),
        (gopher_quality, GOOD + " 12345" * 60, "gopher_letters"),
        (gopher_quality, " ".join(["wordy"] * 60), "gopher_stop_words"),
        (gopher_repetition, "\n\n".join([GOOD] + [PLAIN] * 9), "gopher_repeated_paragraphs"),
        (gopher_repetition, "\n".join(SENTENCES + [PLAIN] * 9), "gopher_repeated_lines"),
        (gopher_repetition, GOOD + " and so" * 40, "gopher_top_2_gram"),
        (
            gopher_repetition,
            GOOD + "\n" + SENTENCES[0] + " " + SENTENCES[1] + " " + SENTENCES[2],
            "gopher_repeated_5_grams",
        ),
        (fineweb, GOOD.replace(".", ""), "fineweb_no_punctuation"),
        (fineweb, "\n".join(SENTENCES + [PLAIN] * 4), "fineweb_repeated_lines"),
        (fineweb, GOOD + "".join(f"\nMenu {place}" for place in range(40)), "fineweb_short_lines"),
        (fineweb, " \n ", "fineweb_empty"),
    ],
)
def test_each_rule_says_why(rule: Callable[[str], str | None], text: str, reason: str) -> None:
    assert rule(text) == reason


def test_lines_that_are_no_prose_go() -> None:
    lines = [
        "The first line[3] stays here.",
        "Home",
        "Please enable JavaScript to go on.",
        "Read our privacy policy now.",
    ]
    assert c4_lines("\n".join(lines)) == "The first line stays here."


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("write to jane.doe+x@mail.co.uk, or", "write to email@example.com, or"),
        ("a@b is none, nor @name, nor x@y.", "a@b is none, nor @name, nor x@y."),
        ("from 8.8.8.8 to 192.168.0.1 and 127.0.0.1", "from 192.0.2.1 to 192.168.0.1 and 127.0.0.1"),
        ("version 1.2.3.400 of 2.10.3, 1.2.3.4.5", "version 1.2.3.400 of 2.10.3, 1.2.3.4.5"),
    ],
)
def test_addresses_are_replaced_and_what_looks_like_them_is_not(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed
    assert scrub(scrubbed) == scrubbed
