"""Prompts of every public layout, written here in small, read as they are; what is missing is said in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from framework.data.layouts.prompts import load_prompts
from framework.errors import UserError
from framework.types import Prompt

EGGS = "2+2=<<2+2=4>>4 eggs,\nso $1,004.\n#### 1,004"
HALF = r"It is \boxed{1}, no: $\boxed{\frac{1}{2}}$."
LAYOUTS: dict[str, tuple[dict[str, Any], Prompt]] = {
    "GSM8K": (
        {"question": "Two and two?", "answer": EGGS},
        Prompt("r.jsonl:1", "Two and two?", "math", "1004", columns={"answer": EGGS}),
    ),
    "MATH": (
        {"problem": "Half?", "level": "Level 1", "solution": HALF},
        Prompt("r.jsonl:1", "Half?", "math", r"\frac{1}{2}", columns={"level": "Level 1", "solution": HALF}),
    ),
    "MATH with answer": (
        {"problem": "Half?", "answer": "0.5", "solution": "s", "unique_id": "test/1"},
        Prompt("test/1", "Half?", "math", "0.5", columns={"solution": "s"}),
    ),
    "question and answer": ({"question": "Bases?", "answer": 70}, Prompt("r.jsonl:1", "Bases?", "math", "70")),
    "AIME, capitals": (
        {"ID": "2024-I-1", "Problem": "Walk?", "Answer": 204.0, "Solution": "s"},
        Prompt("2024-I-1", "Walk?", "math", "204", columns={"Solution": "s"}),
    ),
    "CHAMP": (
        {"identifier": "P_1", "_text": "Strings?", "_answer": "239", "category": "c", "conversations": ["long"]},
        Prompt("P_1", "Strings?", "math", "239", columns={"category": "c"}),
    ),
    "verl": (
        {
            "data_source": "gsm8k",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
            "reward_model": {"style": "rule", "ground_truth": "4"},
            "extra_info": {"index": 7},
        },
        Prompt(
            "r.jsonl:1", "2+2?", "math", "4",
            messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}),
            columns={"data_source": "gsm8k", "extra_info": {"index": 7},
                     "reward_model": {"style": "rule", "ground_truth": "4"}},
        ),
    ),
    "OpenRLHF": ({"input": "2+2?", "label": "4"}, Prompt("r.jsonl:1", "2+2?", "math", "4")),
    "OpenRLHF, messages": (
        {"context_messages": [{"role": "user", "content": "2+2?"}], "label": "4"},
        Prompt("r.jsonl:1", "2+2?", "math", "4"),
    ),
    "HumanEval": (
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "t"},
        Prompt("HumanEval/0", "def f():\n", "code", "    return 1\n", columns={"test": "t"}),
    ),
    "solution of another layout": (
        {"prompt": "Two and two?", "answer": EGGS},
        Prompt("r.jsonl:1", "Two and two?", "math", "1004", columns={"answer": EGGS}),
    ),
    "verl, a structure": (
        {"prompt": json.dumps([{"role": "user", "content": "Make 5."}]),
         "reward_model": {"ground_truth": {"target": 5, "numbers": [2, 3]}}},
        Prompt("r.jsonl:1", "Make 5.", "math", '{"target": 5, "numbers": [2, 3]}',
               columns={"reward_model": {"ground_truth": {"target": 5, "numbers": [2, 3]}}}),
    ),
    "multiple choice, ARC's with numbers": (
        {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
        Prompt("r.jsonl:1", "Which?\n\nA) a\nB) b", "options", "A", columns={"options": {"A": "a", "B": "b"}}),
    ),
    "programs of MBPP": (
        {"task_id": 2, "text": "Add.", "code": "def f(): 1", "test_list": ["assert f()"]},
        Prompt("2", "Add.", "code", "def f(): 1", columns={"test_list": ["assert f()"]}),
    ),
    "programs of APPS": (
        {"question": "Add.", "input_output": '{"inputs": ["1"], "outputs": ["2"]}'},
        Prompt("r.jsonl:1", "Add.", "code", "", columns={"input_output": '{"inputs": ["1"], "outputs": ["2"]}'}),
    ),
    "own": (
        {"id": "a", "prompt": "2+2?", "answer": "4", "task": "chain_sum", "rewards": ["format"], "system": "S"},
        Prompt(
            "a", "2+2?", "chain_sum", "4", rewards=("format",),
            messages=({"role": "system", "content": "S"}, {"role": "user", "content": "2+2?"}),
        ),
    ),
}  # fmt: skip


def jsonl(directory: Path, *rows: object) -> str:
    path = directory / "r.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row, expected = LAYOUTS[layout]
    caplog.set_level(logging.INFO, "framework.data")
    assert load_prompts(jsonl(tmp_path, row)) == (expected,)
    unsaid = ("own", "OpenRLHF", "AIME, capitals", "solution of another layout")
    assert layout.partition(" ")[0].rstrip(",") in caplog.text or layout in unsaid
    assert "read as" in caplog.text


def test_the_users_columns_and_the_rest_travels(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"body": {"q": "2+2?"}, "gold": 4, "level": 5})
    (prompt,) = load_prompts(file, {"text": "body.q", "answer": "gold"})
    assert (prompt.text, prompt.answer, prompt.columns) == ("2+2?", "4", {"body": {"q": "2+2?"}, "level": 5})
    for columns, says in (
        ({"text": "body.x", "answer": "gold"}, "data.columns.text: got 'body.x'"),
        ({"txt": "body"}, "did you mean 'text'?"),
        (
            {"body": "text"},
            r"columns\.body: got 'text'; the other way round: data\.columns=\{text: body\}; .* has body",
        ),
        ({"text": "body.q", "prompt": "gold"}, r"columns\.prompt: got 'gold'; is text again"),
    ):
        with pytest.raises(UserError, match=says):
            load_prompts(file, columns)


def test_a_named_column_goes_before_what_layouts_look_for(tmp_path: Path) -> None:
    row = {"problem": "title", "body": "2+2?", "gold": "so \\boxed{4}", "Answer": "5", "solution": "s"}
    for columns in ({"text": "body", "answer": "gold"}, {"question": "body", "label": "gold"}):
        (prompt,) = load_prompts(jsonl(tmp_path, row), columns)
        assert (prompt.text, prompt.answer) == ("2+2?", "4")
        assert prompt.columns == {"problem": "title", "Answer": "5", "solution": "s", "answer": "so \\boxed{4}"}
    verl = {"prompt": "2+2?", "reward_model": {"ground_truth": "5"}, "gold": "4"}
    assert load_prompts(jsonl(tmp_path, verl), {"answer": "gold"})[0].answer == "4"
    chosen = {"question": "2+2?", "choices": ["3", "4"], "answer_idx": 0, "gold": "B"}
    assert load_prompts(jsonl(tmp_path, chosen), {"answer": "gold"})[0].answer == "B"


def test_headings_of_a_text_to_compare_with_are_no_marks(tmp_path: Path) -> None:
    text = "#### First\nWords.\n#### Second\nMore words."
    (prompt,) = load_prompts(jsonl(tmp_path, {"prompt": "Write.", "answer": text}))
    assert prompt.answer == text


@pytest.mark.parametrize(
    ("rows", "where", "says"),
    [
        ([{"prompt": "q", "reply": "4"}], ":1", "columns prompt, reply'; .*no column for the answer"),
        ([{"prompt": "q", "anwser": "4"}], ":1", "did you mean 'anwser'?"),
        ([{"heading": "q", "answer": "4"}], ":1", r"no column for the text.*data\.columns=\{text: COLUMN\}"),
        ([{"question": "q", "answer": "a #### 4"}, {"question": "q2", "answer": "5"}], ":2: answer", "####"),
        ([{"problem": "q", "solution": "four"}], ":1: solution", "boxed"),
        ([{"problem": "q", "solution": r"\boxed{4"}], ":1: solution", "not closed"),
        ([{"question": "q", "answer": "4"}, {"question": "q"}], ":2", "no answer, which the rows before it have"),
        ([{"prompt": "q", "answer": ["4"]}], ":1: answer", "must be a text or a number"),
        ([{"prompt": "q", "answer": "  "}], ":1: answer", "must not be empty"),
        ([{"prompt": "q", "answer": "4", "token_ids": [1, -2]}], ":1: token_ids", "token ids"),
        ([{"prompt": "q", "answer": "4", "rewards": "format"}], ":1: rewards", "list of strings"),
        ([{"prompt": [{"role": "boss", "content": "q"}], "answer": "4"}], r":1: prompt\[0\]: role", "roles are system"),
        ([{"prompt": [{"role": "assistant", "content": "q"}], "answer": "4"}], ":1: prompt", "user's message"),
        ([{"id": "a", "prompt": "q", "answer": "4"}] * 2, ":2: id", "must be unique; first used at"),
        (['{"prompt": "q", "answer": ' + "1" * 5000 + "}"], ":1", "thousands of digits"),
        (['{"prompt": "q", "answer": "\\ud800"}'], ":1: answer", "surrogate"),
    ],
)  # fmt: skip
def test_every_fault_names_its_line(tmp_path: Path, rows: list[object], where: str, says: str) -> None:
    file = jsonl(tmp_path, *rows)
    with pytest.raises(UserError, match=f"{file}{where}.*{says}".replace("+", r"\+")) as caught:
        load_prompts(file)
    assert len(str(caught.value)) < 500
