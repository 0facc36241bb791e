from __future__ import annotations

import pytest

from framework.data.general import general_requests
from framework.data.judging import margin_by_rule, question_for, read_verdict

PROMPT = general_requests("factual_qa", 0)[0].prompt(("helpful",))
DECLINE = next(g for g in general_requests("decline", 0) if g.language == "en")


@pytest.mark.parametrize(
    ("reply", "margin"),
    [
        ("[[A>>B]]", 2.0),
        ("A says more. [[A>B]]", 1.0),
        ("[[A=B]]", 0.0),
        ("so: [[ B > A ]]", -1.0),
        ("[[B>>A]]", -2.0),
        ("[[A>B]] and once more [[A>B]]", 1.0),
        ("<think>[[A>B]]? No.</think> [[B>A]]", -1.0),
    ],
)
def test_a_verdict_counts_for_the_answer_that_stood_there(reply: str, margin: float) -> None:
    assert read_verdict(reply, first_is_a=True) == margin
    assert read_verdict(reply, first_is_a=False) == -margin


@pytest.mark.parametrize(
    "reply",
    ["", "A is better", "[A>B]", "[[A>B]] [[B>A]]", "[[A>>>B]]", "[[C>A]]", "[[A>A]]", "<think>[[A>B]]</think>"],
)
def test_a_malformed_or_contradictory_reply_is_no_verdict(reply: str) -> None:
    assert read_verdict(reply, first_is_a=True) is None


def test_the_judge_sees_both_answers_in_the_order_that_was_drawn() -> None:
    asked = question_for(PROMPT, "x?0", "ONE", "TWO", first_is_a=False)
    (message,) = asked.messages
    assert asked.id == "x?0"
    assert asked.rewards == ()
    assert message["content"].index("TWO") < message["content"].index("ONE")
    assert PROMPT.text in message["content"]
    (message,) = question_for(PROMPT, "x?0", "ONE", "TWO", first_is_a=True).messages
    assert message["content"].index("ONE") < message["content"].index("TWO")


def test_the_rule_prefers_what_says_what_is_needed_and_then_the_language() -> None:
    good, poor = PROMPT.answer, str(PROMPT.columns["poor"])
    assert margin_by_rule(PROMPT, good, poor) == 2 == -margin_by_rule(PROMPT, poor, good)
    assert margin_by_rule(PROMPT, poor, "") == 1
    assert margin_by_rule(PROMPT, good, good) == 0


def test_declining_is_better_than_helping_to_harm() -> None:
    assert margin_by_rule(DECLINE.prompt(), DECLINE.answer.summary, DECLINE.poor) > 1
