"""Which option a response chooses: layouts that count, and letters that are no answer."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import time

import numpy as np
import pytest

from framework.errors import UserError
from framework.rewards.accuracy import Accuracy
from framework.rewards.options import Options, chosen_option
from framework.types import Prompt, Response

CITIES = {"A": "London", "B": "Paris", "C": "A small town", "D": "none of these"}

CHOSEN = [
    ("B", "B"), ("b", "B"), ("(B)", "B"), ("(b)", "B"), ("B.", "B"), ("B)", "B"), ("b)", "B"), ("[B]", "B"), ("B:", "B"),
    ("**B**", "B"), ("`B`", "B"), ("*(B)*", "B"), ("$B$", "B"), ("（B）", "B"), ("B。", "B"), (" \n B \n", "B"),
    ("B) Paris", "B"), ("B. Paris", "B"), ("(B) Paris", "B"), ("B: Paris.", "B"), ("Option B", "B"), ("option (b)", "B"),
    ("Paris", "B"), ("paris.", "B"), ("**Paris**", "B"), ("none of these", "D"), ("A small town", "C"), ("a small town.", "C"),
    ("The answer is B", "B"), ("the answer is B.", "B"), ("The answer is (B).", "B"), ("the answer is b.", "B"),
    ("The correct answer is B) Paris.", "B"), ("The answer is: B", "B"), ("Answer: B", "B"), ("ANSWER: B", "B"),
    ("answer = B", "B"), ("**Answer:** B", "B"), ("**Answer: B**", "B"), ("Answer: **(B)**", "B"), ("Final answer: B", "B"),
    ("Answer:\nB", "B"), ("Answer:\n\nB) Paris", "B"), ("The answer is option B.", "B"), ("The best choice is B.", "B"),
    ("The answer is Paris.", "B"), ("The answer is A small town.", "C"), ("The answer is a small town", "C"),
    ("The answer is B because it is the capital.", "B"), ("The answer is A, since the Thames runs there.", "A"),
    ("The answer is B. London is no capital of France.", "B"), ("Answer: B (Paris)", "B"), ("Answer: B - Paris", "B"),
    ("I think it is A. No: the answer is B.", "B"), ("The answer is A... wait, the answer is B", "B"),
    ("Option B is correct.", "B"), ("(B) is the correct answer", "B"), ("B is right", "B"), ("I would choose B.", "B"),
    ("I'll go with B", "B"), ("B\n\nThe Seine runs through it.", "B"), ("It is the capital.\n\nB", "B"),
    ("So it must be France's capital.\n(B) Paris", "B"),
    ("\\boxed{B}", "B"), ("\\boxed{b}", "B"), ("\\boxed{(B)}", "B"), ("\\boxed{\\text{B}}", "B"), ("$\\boxed{\\mathrm{B}}$", "B"),
    ("\\boxed{\\textbf{(B) Paris}}", "B"), ("\\boxed{Paris}", "B"), ("The answer is A. \\boxed{B}", "B"),
    ("<think>A or B?</think> <answer>B</answer>", "B"), ("<answer> (b) </answer>", "B"), ("<answer>The answer is B.</answer>", "B"),
    ("#### B", "B"), ("<think>the answer is A</think>\n\nB", "B"), ("答案是B", "B"), ("答案：B", "B"), ("因此选B。", "B"),
    ("答案为（B）", "B"), ("The answer is not A. The answer is B.", "B"), ("Answer: B\n\nA is wrong.", "B"),
    ("The answer is B, not A.", "B"), ("It must be B.", "B"), ("I believe B is the answer.", "B"), ("Select B", "B"), ("So, B", "B"),
    ('The answer is "B".', "B"), ("The answer is <b>B</b>", "B"), ("选项B正确", "B"), ("So the answer is clearly (B).", "B"),
    ("Ans: B", "B"), ("ans. = B", "B"), ("The answer's B", "B"), ("It's B", "B"), ("Correct: B", "B"), ("「B」", "B"),
    ("【答案】B", "B"), ("【答案】：(B)", "B"), ("Ｂ", "B"), ("Answer: （Ｂ）", "B"), ('{"answer": "B"}', "B"), ("{'answer': 'B'}", "B"),
    ("Answer - B", "B"), ("Answer – B) Paris", "B"), ("Answer → B", "B"), ("=> B", "B"), ("→ B", "B"), ("La respuesta es B.", "B"),
    ("Die Antwort ist B", "B"), ("Réponse : B", "B"), ("答えはBです", "B"), ("정답은 B", "B"), ("정답: B", "B"),
    ("The answer is none of these", "D"), ("Answer: D) none of the above", "D"), ("\\boxed{D. none of the above}", "D"),
]  # fmt: skip
NO_ANSWER = [
    "", "A dog is an animal.", "A nice question!", "I do not know.", "Because of the river.", "The answer is clear.",
    "The answer is Because", "The answer is a dog.", "The answer is A dog", "The answer is B12", "Answer: Apple",
    "The answer is B or C.", "Answer: A, B", "\\boxed{A, B}", "\\boxed{B or C}", "The answer is either A or B",
    "The answer is not B", "\\boxed{}", "<answer></answer>", "F", "(F)", "\\boxed{F}", "The answer is Z.", "42", "The answer is C++",
    "The answer is E = mc^2", "Let me read options A, B, C and D again.", "A\nB\nC\nD or so", "Berlin", "AB", "The answer is AB",
    "A. Smith wrote this.", "neither", "\\boxed{London and Paris}", "Both B and C could be meant", "So it is a", "Both A and B", "It is A or B",
    "I can't answer: A question like this is hard", "The answer is either A or B, so the answer is unclear",
    "A) London B) Paris C) A small town", "The answer is B and also C", "不选B", "B错误", "B不对", "B是错的", "Answer - A dog",
    "A) London\nB) Paris\nC) A small town\nD) none of these", "(A)\n(B)\n(C)\n(D)",
]  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), CHOSEN)
def test_every_layout_of_a_choice_counts(text: str, letter: str) -> None:
    assert chosen_option(text, CITIES) == letter


@pytest.mark.parametrize("text", NO_ANSWER)
def test_letters_that_are_no_answer(text: str) -> None:
    assert chosen_option(text, CITIES) is None


@pytest.mark.parametrize(
    ("text", "letter"), [("B) whatever", "B"), ("(e)", "E"), ("The answer is D.", "D"), ("F", None)]
)
def test_a_prompt_without_texts_has_letters_a_to_e(text: str, letter: str | None) -> None:
    assert Options().extracted(Prompt("p", "?", "options", "B"), respond(text)) == letter


def test_texts_that_look_like_letters_or_numbers() -> None:
    blood = {"A": "AB", "B": "0", "C": "A", "D": "B"}
    assert chosen_option("The answer is AB.", blood) == "A"
    assert chosen_option("The answer is A.", blood) == "A"  # letters go before texts
    numbers = {"A": "4", "B": "5.5", "C": "-3", "D": "1/2"}
    assert [chosen_option(text, numbers) for text in ("5.5", "The answer is -3.", "\\boxed{\\frac12}", "1/2")] == [
        "B", "C", None, "D",
    ]  # fmt: skip
    assert chosen_option("J", dict.fromkeys("ABCDEFGHIJ", "")) == "J"


def respond(text: str, finish: str = "stop") -> Response:
    ids = np.arange(3, dtype=np.int32)
    return Response(ids, ids.astype(np.float32), ids, finish, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("reward", [Options(), Accuracy()])
def test_rewards(reward: Options | Accuracy) -> None:
    prompt = Prompt("p", "The capital of France?", "options", "B", columns={"options": CITIES})
    assert [reward(prompt, respond(text)) for text in ("(b)", "The answer is C.", "A dog", "Paris")] == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]
    assert reward.extracted(prompt, respond("\\boxed{\\text{(c)}}")) == "C"
    assert reward.agree(prompt, "B", "B")
    assert not reward.agree(prompt, "B", "C")
    reward.check(prompt)
    reward.check(Prompt("p", "?", "options", "Paris", columns={"options": CITIES}))
    with pytest.raises(UserError, match="prompt p: answer: got 'F'; must be one of the options A, B, C, D"):
        reward.check(Prompt("p", "?", "options", "F", columns={"options": CITIES}))


@pytest.mark.parametrize(
    "piece",
    [
        "the answer is ",
        "A or ",
        "\\boxed{",
        "(",
        "B) ",
        "答案",
        "is the correct ",
        "I'll go with ",
        "answer - ",
        "答え",
        "'",
        "Ｂ",
    ],
)
def test_long_responses_take_no_time(piece: str) -> None:
    began = time.perf_counter()
    chosen_option(piece * (200_000 // len(piece)), CITIES)
    assert time.perf_counter() - began < 1.0
