from __future__ import annotations

from typing import Any

import pytest

from framework.config import compose
from framework.data.tasks import TaskConfig, generate
from framework.errors import UserError
from framework.rewards.code import Code
from framework.rewards.code_tests import has_tests
from framework.rewards.right import Right
from framework.types import Prompt
from tests.contract.sample_rewards import response_of

REWARD = Right(code=Code(total_s=60.0))
SAID = "<think> x </think> <answer> {} </answer>"


@pytest.mark.parametrize("task", ["word_problems", "logic", "multiple_choice", "small_programs", "chain_sum"])
def test_each_prompt_is_judged_by_what_its_data_has(task: str) -> None:
    for prompt in generate(task, TaskConfig(), 0, 4):
        REWARD.check(prompt)
        assert REWARD(prompt, response_of(SAID.format(prompt.answer))) == 1.0
        assert REWARD(prompt, response_of(SAID.format("nothing"))) == 0.0
        shown = REWARD.extracted(prompt, response_of(SAID.format(prompt.answer)))
        assert shown is not None
        assert shown.strip() == prompt.answer
        assert REWARD.agree(prompt, prompt.answer, prompt.answer)


@pytest.mark.parametrize(
    ("columns", "answer", "tests"),
    [
        ({}, "4", False),
        ({"test": "def check(candidate): pass", "entry_point": "f"}, "", True),
        ({"test": "A blood test", "options": {"A": "x", "B": "y"}}, "A", False),
        ({"tests": [{"input": "", "output": ""}]}, "", True),
        ({"tests": []}, "", False),
        ({"input_output": "{}"}, "", True),
        ({}, '{"inputs": ["1"], "outputs": ["1"]}', True),
        ({}, "[1, 2]", False),
        ({}, "{1, 2}", False),
        ({"examples": [{"input": "1", "output": "1"}]}, "", True),
        ({"examples": "of use"}, "4", False),
    ],
)
def test_which_prompts_have_tests(columns: dict[str, Any], answer: str, tests: bool) -> None:
    assert has_tests(Prompt("p0", "q", "math", answer, columns=columns)) is tests


def test_it_is_r1s_accuracy() -> None:
    assert isinstance(compose(["reward=r1"]).reward.components["accuracy"], Right)


def test_tests_that_cannot_be_read_are_told() -> None:
    with pytest.raises(UserError, match="JSONDecodeError"):
        REWARD.check(Prompt("p0", "q", "code", "", columns={"input_output": "{"}))
