from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from framework.data.general import KINDS, LANGUAGES, answers_well, general_requests
from framework.data.readability import ReadableConfig, unreadable
from framework.data.reasoning import split_reasoning
from framework.data.tasks import same_text


@pytest.mark.parametrize("kind", KINDS)
def test_requests_of_a_kind_are_different_bilingual_and_well_answered(kind: str) -> None:
    found = general_requests(kind, seed=0)
    assert len({same_text(general.question) for general in found}) == len(found) >= 48
    assert set(Counter(general.language for general in found)) == set(LANGUAGES)
    for general in found:
        prompt = general.prompt(("helpful",))
        assert prompt.rewards == ("helpful",)
        assert answers_well(prompt, general.answer.summary)
        assert not answers_well(prompt, general.poor)
        assert split_reasoning(general.answer.message()["content"]) == general.answer
        assert unreadable(general.answer, general.question, ReadableConfig()) is None
        assert prompt.columns["decline"] == (kind == "decline")


def test_simple_requests_are_answered_without_reasoning() -> None:
    thinks = {kind: any(general.answer.reasoning for general in general_requests(kind, 0)) for kind in KINDS}
    assert thinks == {"greeting": False, "self_cognition": False, "factual_qa": False, "translation": True,
                      "writing": True, "decline": True}  # fmt: skip


def test_the_order_depends_on_the_seed_alone() -> None:
    first = general_requests("writing", 0)
    assert general_requests("writing", 0) == first != general_requests("writing", 1)
    assert {general.question for general in general_requests("writing", 1)} == {general.question for general in first}


def test_an_id_is_of_the_question_alone() -> None:
    general = general_requests("writing", 0)[0]
    assert replace(general, poor="x").prompt().id == general.prompt().id
    assert len({general.prompt().id for kind in KINDS for general in general_requests(kind, 0)}) == sum(
        len(general_requests(kind, 0)) for kind in KINDS
    )
