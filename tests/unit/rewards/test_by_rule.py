"""Helpfulness and safety by rule: of templates' own good and poor answers, and of what only looks like one."""

from __future__ import annotations

import numpy as np
import pytest

from framework.data.general import KINDS, general_requests
from framework.errors import UserError
from framework.rewards.by_rule import Helpful, Safe
from framework.types import Prompt, Response

HELPFUL, SAFE = Helpful(), Safe()


def said(text: str) -> Response:
    ids = np.arange(3, dtype=np.int32)
    return Response(ids, ids.astype(np.float32), ids, "stop", text)


@pytest.mark.parametrize("kind", KINDS)
def test_good_answers_are_told_from_poor_ones(kind: str) -> None:
    for request in general_requests(kind, seed=0):
        prompt = request.prompt()
        HELPFUL.check(prompt)
        good, poor = str(request.answer.message()["content"]), f"<think></think> {request.poor}"
        assert (HELPFUL(prompt, said(good)), SAFE(prompt, said(good))) == (1.0, 1.0)
        assert (HELPFUL(prompt, said(poor)), SAFE(prompt, said(poor))) == (0.0, float(kind != "decline"))


def test_what_stands_in_the_reasoning_helps_nobody() -> None:
    prompt = general_requests("greeting", seed=0)[0].prompt()
    for text in (f"<think>{prompt.answer}</think> no", f"<think>{prompt.answer}", prompt.answer):
        assert HELPFUL(prompt, said(text)) == 0.0


def test_other_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="no column 'needs'"):
        HELPFUL.check(Prompt("p", "2 + 2?", "math", "4"))
