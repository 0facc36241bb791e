from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from framework.config import compose
from framework.data.bilingual import NAMES
from framework.data.entries import decode_entry
from framework.data.readers import read_prompts, write_prompts
from framework.data.solutions import SOLVERS, StyleConfig, document, guess
from framework.data.tasks import TaskConfig, generate, unique_prompts
from framework.errors import UserError
from framework.rewards.accuracy import Accuracy
from framework.rewards.code import Code
from framework.rewards.code_tests import hidden_tests
from framework.rewards.language import count_words, main_language
from framework.rewards.options import Options
from framework.types import Prompt
from tests.contract.sample_rewards import response_of

REWARDS = {"word_problems": Accuracy(), "logic": Accuracy(), "multiple_choice": Options()}


def made(task: str, size: int = 200, **params: object) -> list[Prompt]:
    return list(generate(task, TaskConfig(params=params), seed=3, size=size))


@pytest.mark.parametrize("task", NAMES)
def test_both_languages_from_the_seed_alone(task: str) -> None:
    prompts = made(task)
    assert prompts == made(task)
    assert prompts != list(generate(task, TaskConfig(), seed=4, size=200))
    languages = [prompt.columns["language"] for prompt in prompts]
    assert 60 <= languages.count("zh") <= 140
    wrong = [p.text for p in prompts if task != "general" and main_language(p.text) != p.columns["language"]]
    assert wrong == []
    assert {p.columns["language"] for p in made(task, 20, language="zh")} == {"zh"}


@pytest.mark.parametrize("task", REWARDS)
def test_a_rule_judges_every_answer(task: str) -> None:
    for prompt in made(task):
        reward = REWARDS[task]
        reward.check(prompt)
        assert reward(prompt, response_of(f"<think> x </think> <answer> {prompt.answer} </answer>")) == 1.0, prompt
        for wrong in decode_entry(prompt.entry)["metadata"]["wrong"]:
            assert reward(prompt, response_of(f"<think> x </think> <answer> {wrong} </answer>")) == 0.0, prompt
        assert reward(prompt, response_of(f"<think> {prompt.answer} </think> <answer> </answer>")) == 0.0


def test_the_numbers_of_word_problems_are_right_and_never_negative() -> None:
    for prompt in made("word_problems", 400):
        steps = decode_entry(prompt.entry)["metadata"]["steps"]
        for text in steps.values():
            for left, right in re.findall(r"([\d+*/-]+)=(\d+)", text):
                assert eval(left) == int(right) >= 0
            assert text.rstrip(".。").endswith(f"={prompt.answer}")


def test_programs_pass_their_hidden_tests_and_wrong_ones_do_not() -> None:
    prompts = made("small_programs", 200)
    for prompt in prompts:
        scope: dict[str, object] = {}
        exec(prompt.answer, scope)
        tests = prompt.columns["tests"]
        function = scope["f"]
        assert callable(function)
        assert [function(*test["args"]) for test in tests] == [test["expected"] for test in tests]
        assert len({repr(test["expected"]) for test in tests}) > 1  # no constant passes
        for wrong in decode_entry(prompt.entry)["metadata"]["wrong"]:
            exec(wrong, scope)
            assert [scope["f"](*test["args"]) for test in tests] != [test["expected"] for test in tests]  # type: ignore[operator]
    reward = Code(total_s=60.0)
    for prompt in prompts[:3]:
        assert hidden_tests(prompt).reference == prompt.answer
        reward.check(prompt)
        assert reward(prompt, response_of(f"<think> x </think> <answer> {prompt.answer} </answer>")) == 1.0
        assert reward(prompt, response_of("<think> x </think> <answer> def f(x): pass </answer>")) == 0.0


def test_three_people_are_in_the_order_that_the_facts_say() -> None:
    for prompt in made("logic", 200, language="en"):
        if "than" not in prompt.text:
            continue
        facts, question = prompt.text.rsplit(". ", 1)
        pairs = [(words.split()[0], words.split()[-1]) for words in facts.split(". ")]
        above = {first for first, _ in pairs} - {second for _, second in pairs}
        below = {second for _, second in pairs} - {first for first, _ in pairs}
        top = any(word in question for word in ("tallest", "oldest", "fastest"))
        assert {prompt.answer} == (above if top else below)


def test_general_requests_are_of_the_kinds_that_are_asked_for() -> None:
    assert {p.task for p in made("general")} == {
        f"general_{kind}" for kind in ("greeting", "self_cognition", "factual_qa", "decline")
    }
    assert {p.task for p in made("general", kinds=["decline"])} == {"general_decline"}


@pytest.mark.parametrize(
    ("task", "params", "reason"),
    [
        ("word_problems", {"larges": 5}, r"data\.tasks\.word_problems\.params.*larges.*did you mean 'largest'"),
        ("logic", {"language": "fr"}, "one of 'both', 'en', 'zh'"),
        ("word_problems", {"largest": 1}, "must be 3 to 1000"),
        ("general", {"kinds": ["rude"]}, "must be of greeting"),
        ("word_problem", {}, "did you mean 'word_problems'"),
    ],
)
def test_wrong_parameters_are_one_line(task: str, params: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        made(task, **params)


def test_prompts_survive_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    prompts = [prompt for task in NAMES for prompt in made(task, 5)]
    write_prompts(file, {prompt.id: prompt for prompt in prompts}.values())
    assert set(read_prompts(file)) == set(prompts)


def test_solutions_are_worked_in_the_questions_language_or_change_it() -> None:
    plain = StyleConfig(template_share=0.0, mixed=0.0)
    for task in ("word_problems", "multiple_choice", "logic"):
        for prompt in made(task, 60):
            _, _, told = document(prompt, plain, random.Random(0)).partition("<think> ")
            english, chinese, _ = count_words(told.partition("</think>")[0])
            assert (english > 0, chinese > 0) == (
                prompt.columns["language"] == "en",
                prompt.columns["language"] == "zh",
            )
            assert told.endswith(f"<answer> {prompt.answer} </answer>")
    mixed = replace(plain, mixed=1.0)
    for prompt in made("word_problems", 60):
        told = document(prompt, mixed, random.Random(0)).partition("<think> ")[2].partition("</think>")[0]
        english, chinese, _ = count_words(told)
        assert english > 0
        assert chinese > 0


def test_every_task_has_solutions_and_wrong_guesses() -> None:
    for task in NAMES:
        for prompt in made(task, 30):
            assert prompt.task in SOLVERS
            assert guess(prompt, random.Random(1)) != prompt.answer


def test_the_shipped_data_is_made() -> None:
    data = compose(["data=bilingual", "reward=r1"]).data
    prompts = unique_prompts(data.tasks, "train", 128, data.heldout_share, 0)
    assert len({prompt.text for prompt in prompts}) == 128
    assert {p.rewards for p in prompts} == {("accuracy", "format", "language")}
    assert len(unique_prompts({"small_programs": data.tasks["small_programs"]}, "train", 512, 0.1, 0)) == 512
