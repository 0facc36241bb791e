from __future__ import annotations

import pytest

from framework.data.bilingual import generate_bilingual
from framework.data.readability import ReadableConfig, unreadable
from framework.data.reasoning import Reasoned, split_reasoning
from framework.data.rewriting import answer_request, request, rewrite_by_rule
from framework.data.selection import Sample
from framework.rewards.accuracy import Accuracy
from framework.rewards.right import Right
from framework.types import Prompt
from tests.unit.data.test_selection import response

ENGLISH = Prompt("e", "What is 7 + 8?", "math", "15", rewards=("accuracy",), token_ids=(1, 2), opened="<think>")
CHINESE = Prompt("c", "七加八等于多少？", "math", "15")


@pytest.mark.parametrize("prompt", [ENGLISH, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize("place", [1, 10])  # both frames of a language
def test_a_rewriting_by_rule_is_readable_and_still_right(prompt: Prompt, place: int) -> None:
    written = rewrite_by_rule(Sample(f"{prompt.id}#{place}", prompt, Reasoned("7+8=15", "15")))
    assert "7+8=15" in written.reasoning
    assert unreadable(written, prompt.text, ReadableConfig()) is None
    text = str(written.message()["content"])
    assert split_reasoning(text) == written
    assert Accuracy()(prompt, response(text)) == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_rewritten_program_still_passes_its_tests(language: str) -> None:
    found = {p.columns["language"]: p for p in generate_bilingual("small_programs", {}, seed=0, size=4)}
    prompt, right = found[language], Right()
    for said in (prompt.answer, f"```python\n{prompt.answer}\n```"):
        written = rewrite_by_rule(Sample("p#0", prompt, Reasoned("One line is enough.", said)))
        assert right(prompt, response(str(written.message()["content"]))) == 1
    (message,) = request(Sample("p#0", prompt, Reasoned("One line.", prompt.answer))).messages
    assert "ends with the final answer in one ```python block" in message["content"]


def test_a_chat_model_is_asked_with_question_draft_and_language_and_scored_as_the_question_is() -> None:
    asked = request(Sample("e#3", ENGLISH, Reasoned("7+8=15", "15")))
    (message,) = asked.messages
    assert (asked.id, asked.answer, asked.rewards, asked.text) == ("e#3", "15", ("accuracy",), ENGLISH.text)
    assert (asked.token_ids, asked.opened) == ((), "")  # the draft's own, which the new question must not keep
    for part in ("What is 7 + 8?", "7+8=15", "in English only"):
        assert part in message["content"]
    assert "in Chinese only" in request(Sample("c#3", CHINESE, Reasoned("x", "15"))).messages[0]["content"]


def test_a_request_for_an_answer_keeps_what_stands_before_the_question() -> None:
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"})
    asked = answer_request(Prompt("p", "Hello", "general_greeting", "", messages=turns))
    assert asked.messages[0] == turns[0]
    assert asked.messages[1]["content"].startswith("Hello\n\n")
