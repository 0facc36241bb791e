"""Mathematical answers: the table of pairs, and what holds for any text."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.rewards.maths.verdict import ReferenceWithoutContent, is_copy, math_answers_agree

# References, answers that are right and that are wrong, in the shapes that public data sets and models write
KINDS = ("wrong", "right")
TABLE = [json.loads(line) for line in Path(__file__).with_name("math_pairs.jsonl").read_text().splitlines()]
PAIRS = [
    (row["reference"], text, kind == "right") for row in TABLE for kind in ("right", "wrong") for text in row[kind]
]
HOSTILE = [
    "+".join(["9"] * 1000), "(" * 5000 + "9" + ")" * 5000, "(" * 900 + "9" + ")" * 900, "9" * 1_000_000, "9" * 1900,
    "\\sqrt{" * 300 + "81" + "}" * 300, "{" * 100_000, "\\frac{" * 300, "-" * 1001 + "9", "\\boxed{" * 50_000,
    "\x00", "\ud800", "9\n" * 100_000, "\\begin{pmatrix}" * 100, "9" + "!" * 1000, "9^" * 900 + "9", "\\log_{" * 300,
    "|" * 1000, "x" + "+x" * 900, "\\{" * 900, "{" * 38 + "9^9" + "}" * 38 + "!", "e^{e^{e^{e^{e^9}}}}", "0^{-1}",
]  # fmt: skip
COMMANDS = ("frac", "sqrt", "boxed{", "pm", "\\", "begin{pmatrix}", "text{", "log_", "left", "overline{", "in ")
PIECES = st.sampled_from(
    [
        *"0123456789+-*/^_=<>(){}[]|!%,.:; xyein$\\&°√½²π∞",
        *(f"\\{name}" for name in COMMANDS),
        *("answer is ", "dollars", " or ", "元", "####", "e5", "sin"),
    ]
)
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join))


def test_the_table_is_large_and_balanced() -> None:
    right = sum(expected for _, _, expected in PAIRS)
    assert len(PAIRS) >= 250
    assert min(right, len(PAIRS) - right) > 0.4 * len(PAIRS)
    assert len(set(PAIRS)) == len(PAIRS)


@pytest.mark.parametrize(("reference", "answer", "expected"), PAIRS, ids=lambda value: ascii(str(value))[:40])
def test_pair(reference: str, answer: str, expected: bool) -> None:
    assert math_answers_agree(reference, answer) is expected


@pytest.mark.parametrize("reference", [row["reference"] for row in TABLE], ids=ascii)
def test_every_reference_agrees_with_itself(reference: str) -> None:
    assert math_answers_agree(reference, reference)


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS)
def test_any_text_gets_a_verdict_in_time_and_agrees_with_itself(reference: str, answer: str) -> None:
    began = time.process_time()
    with contextlib.suppress(ReferenceWithoutContent):
        math_answers_agree(reference, answer)
        assert math_answers_agree(reference, reference)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: ascii(answer[:20]))
def test_what_would_hang_or_crash_a_verifier_is_wrong_at_once(answer: str) -> None:
    began = time.process_time()
    assert not math_answers_agree("8", answer)
    assert not math_answers_agree("x + 1", answer)
    assert not math_answers_agree("(1, 2)", answer)
    assert time.process_time() - began < 2


@settings(max_examples=200, deadline=None)
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_agree_exactly_if_they_are_equal(a: object, b: object) -> None:
    assert math_answers_agree(str(a), str(b)) is (a == b)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6), st.lists(st.sampled_from("+-*"), min_size=5, max_size=5))
def test_unfinished_arithmetic_is_never_a_number(numbers: list[int], signs: list[str]) -> None:
    task = " ".join(f"{n} {sign}" for n, sign in zip(numbers, signs, strict=False)) + f" {numbers[0]}"
    assert not math_answers_agree(str(eval(task)), task)


@pytest.mark.parametrize("reference", ["", " ", "$$", "\\boxed{}", "."])
def test_a_reference_without_anything_is_an_error(reference: str) -> None:
    with pytest.raises(ReferenceWithoutContent, match="holds nothing"):
        math_answers_agree(reference, "1")


@pytest.mark.parametrize(
    "reference", ["\\frac{", "\\frac", "\\frac{1}", "\\sqrt", "\\boxed{\\frac{1}{2}", "{1, 2", "x}", "\\frac1"]
)
def test_a_reference_that_breaks_off_agrees_with_nothing(reference: str) -> None:
    with pytest.raises(ReferenceWithoutContent, match="breaks off"):
        math_answers_agree(reference, reference)


@pytest.mark.parametrize(
    ("reference", "answer", "question", "copied"),
    [
        ("3", "84/28", "What is 84/28?", True),
        ("2", "\\sqrt{4}", "Simplify $\\sqrt{4}$.", True),
        ("x^2+2x+1", "(x+1)^2", "Expand $(x + 1)^2$.", True),
        ("x^2+2x+1", "x^2+2x+1", "Is it (x+1)^2 or x^2+2x+1?", False),
        ("\\frac{1}{2}", "1/2", "Which is larger, 1/2 or 1/3?", False),
        ("18", "18", "She has 18 and 19.", False),
        ("-4", "-4", "Take the sign of -4.", False),
        ("3", "84/28", "Seven goes how often into 21?", False),
    ],
)
def test_copied_work_is_told_from_an_answer(reference: str, answer: str, question: str, copied: bool) -> None:
    assert is_copy(reference, answer, question) is copied


def test_sizes_grow_linearly() -> None:
    # each of these takes milliseconds; a quadratic search would take minutes
    began = time.process_time()
    for piece in (
        "\\boxed{",
        "<answer>",
        "1,",
        "1 ",
        "(",
        "answer is ",
        "\\frac",
        "9^",
        "=",
        "x+",
        "$",
        "\\text{",
        "####",
    ):
        math_answers_agree("5", piece * 100_000)
    assert time.process_time() - began < 20
