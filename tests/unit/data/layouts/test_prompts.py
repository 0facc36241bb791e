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
    assert layout.partition(" ")[0].rstrip(",") in caplog.text or layout in ("own", "OpenRLHF", "AIME, capitals")
    assert "read as" in caplog.text


def test_the_users_columns_and_the_rest_travels(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"body": {"q": "2+2?"}, "gold": 4, "level": 5})
    (prompt,) = load_prompts(file, {"text": "body.q", "answer": "gold"})
    assert (prompt.text, prompt.answer, prompt.columns) == ("2+2?", "4", {"body": {"q": "2+2?"}, "level": 5})
    for columns, says in (
        ({"text": "body.x", "answer": "gold"}, "data.columns.text: got 'body.x'"),
        ({"txt": "body"}, "did you mean 'text'?"),
    ):
        with pytest.raises(UserError, match=says):
            load_prompts(file, columns)


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
