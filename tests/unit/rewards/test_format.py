from __future__ import annotations

import pytest

from framework.rewards.format import Format
from framework.types import Prompt
from tests.contract.sample_rewards import response_of

PROMPT = Prompt("p0", "question", "t", "a")


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><answer>b</answer>",
        " <think> a\nb </think>\n\n<answer> c </answer>\n",
        "<think>1 < 2 <b> </think> <answer>2 > 1</answer>",
    ],
)
def test_well_formed(text: str) -> None:
    assert Format()(PROMPT, response_of(text)) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "<think>a</think>",
        "<answer>b</answer>",
        "<think>a<answer>b</answer>",
        "<think>a</think><answer>b",
        "<think></think><answer>b</answer>",
        "<think>a</think><answer> \n</answer>",
        "<answer>b</answer><think>a</think>",
        "x <think>a</think><answer>b</answer>",
        "<think>a</think> x <answer>b</answer>",
        "<think>a</think><answer>b</answer> x",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<think>a</think><think>a</think><answer>b</answer>",
        "<think><think>a</think></think><answer>b</answer>",
        "<think>a<answer>x</think><answer>b</answer>",
        "<Think>a</Think><answer>b</answer>",
    ],
)
def test_malformed(text: str) -> None:
    assert Format()(PROMPT, response_of(text)) == 0.0


@pytest.mark.parametrize("finish_reason", ["length", "abort"])
def test_a_response_that_did_not_stop_is_malformed(finish_reason: str) -> None:
    assert Format()(PROMPT, response_of("<think>a</think><answer>b</answer>", finish_reason)) == 0.0


def test_a_hostile_text_costs_linear_time() -> None:
    # quadratic matching of this would take hours
    assert Format()(PROMPT, response_of("<think>" + " " * 2_000_000 + "</think><answer>b</answer> x")) == 0.0


@pytest.mark.parametrize(
    ("text", "opened", "value"),
    [
        ("<think>a</think> b", "", 1.0),
        ("a\n</think>\n\nb", "<think>\n", 1.0),
        ("\n</think>\n\nHello!", "<think>\n", 1.0),  # simple requests need no reasoning
        ("<think>a</think> <answer>b</answer>", "", 1.0),
        ("a\n</think>\n\n", "<think>\n", 0.0),
        ("b", "<think>\n", 0.0),
        ("<think>a</think> b", "<think>\n", 0.0),  # the prompt holds the tag already: not asked for, not said twice
        ("b <think>a</think>", "", 0.0),
        ("<think>a</think> b </think>", "", 0.0),
    ],
)
def test_a_summary_may_stand_for_the_answer_tags(text: str, opened: str, value: float) -> None:
    prompt = Prompt("p0", "question", "t", "a", opened=opened)
    assert Format(answer="summary")(prompt, response_of(text)) == value
    assert Format(answer="summary")(prompt, response_of(text, "length")) == 0.0
