"""Public benchmarks from files in their public formats: what is asked, what is right, how it is sampled."""

from __future__ import annotations

import base64
import csv
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from framework import cli
from framework.config import build_graph, compose, group_options
from framework.data.layouts.prompts import load_prompts
from framework.errors import UserError
from framework.rewards.code import Code
from framework.rewards.code_tests import hidden_tests
from framework.rewards.right import Right
from framework.stages.evaluate import Evaluate
from framework.stages.prompts import PreparePrompts
from framework.types import Prompt
from tests.contract.families import write_checkpoint

HUMANEVAL = {
    "task_id": "HumanEval/0", "prompt": 'def add(a, b):\n    """The sum."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add",
}  # fmt: skip
GPQA = {
    "Record ID": "rec1", "Question": "Which is a noble gas?", "Correct Answer": "Neon", "Incorrect Answer 1": "Iron",
    "Incorrect Answer 2": "Gold", "Incorrect Answer 3": "Zinc", "High-level domain": "Chemistry", "Subdomain": "x",
}  # fmt: skip


PACKED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps([{"input": "2 3", "output": "5"}])))).decode()
LIVECODEBENCH = {
    "question_title": "Sum", "question_content": "Print the sum of two numbers.", "platform": "atcoder",
    "question_id": "abc_a", "contest_id": "abc", "contest_date": "2024-09-01T00:00:00", "starter_code": "",
    "difficulty": "easy", "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
    "private_test_cases": PACKED, "metadata": "{}",
}  # fmt: skip
CODEFORCES = {
    "id": "852/A", "contest_id": "852", "contest_start": 1_725_148_800, "title": "Sum", "rating": 800.0,
    "description": "Given two numbers, print their sum.", "input_format": "Two numbers.", "output_format": "One.",
    "examples": [{"input": "1 2", "output": "3"}], "official_tests": [{"input": "4 5", "output": "9"}],
    "note": None, "editorial": "Add them.",
}  # fmt: skip


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def sheet(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# name -> ending, writer, row, reference answer, k
PUBLIC: dict[str, tuple[str, Callable[[Path, list[dict[str, Any]]], Path], dict[str, Any], str, int]] = {
    "aime_2024": ("parquet", table, {"id": 60, "problem": "Walk?", "solution": "s", "answer": "204"}, "204", 64),
    "aime_2025": ("jsonl", jsonl, {"question": "Bases?", "answer": "70"}, "70", 64),
    "math_500": ("jsonl", jsonl, {"problem": "Half?", "solution": r"\boxed{1}", "answer": "0.5", "subject": "Algebra",
                                  "level": 2, "unique_id": "test/1.json"}, "0.5", 16),
    "gsm8k": ("parquet", table, {"question": "2 + 2?", "answer": "so 4\n#### 4"}, "4", 4),
    "gpqa_diamond": ("csv", sheet, GPQA, "", 64),
    "mmlu": ("parquet", table, {"question": "2 + 2?", "subject": "x", "choices": list("1234"), "answer": 3}, "D", 1),
    "humaneval": ("jsonl", jsonl, HUMANEVAL, "    return a + b\n", 16),
    "livecodebench": ("jsonl", jsonl, LIVECODEBENCH, "", 8),
    "codeforces": ("parquet", table, CODEFORCES, "", 16),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "base"
    write_checkpoint("qwen3_tied", path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return path


def planned(base: Path, name: str, file: Path, *overrides: str) -> tuple[tuple[Prompt, ...], Evaluate]:
    words = ["job=eval", f"base={base}", f"benchmark={name}", f"benchmark.file={file}", *overrides]
    nodes = build_graph(compose(words)).nodes
    prompts, evaluate = nodes["prompts"].stage, nodes["eval"].stage
    assert isinstance(prompts, PreparePrompts)
    assert isinstance(evaluate, Evaluate)
    return prompts.config.read()[1], evaluate


def test_every_benchmark_is_tested() -> None:
    assert group_options("benchmark") == sorted([*PUBLIC, "sst2"])  # that one is in test_eval_text


@pytest.mark.parametrize("name", PUBLIC)
def test_a_benchmark_is_read_as_it_is_published(name: str, base: Path, tmp_path: Path) -> None:
    ending, write, row, answer, k = PUBLIC[name]
    (prompt,), evaluate = planned(base, name, write(tmp_path / f"test.{ending}", [row]))
    keys = ("question", "problem", "Question", "prompt", "question_content", "description")
    question = next(str(row[key]) for key in keys if key in row)
    assert prompt.text.removeprefix("# Sum\n\n").startswith(question)
    asked = prompt.messages[-1]["content"]
    assert prompt.text in asked
    assert prompt.text != asked  # it says how the answer is to be written
    config = evaluate.config
    assert (evaluate.label, config.k, config.temperature, config.top_p) == (name, k, 0.6, 0.95)
    assert 3000 < config.max_tokens < 4096  # of 32,768: the model's context, less the prompt
    cut = f"max_tokens cut from 32,768 to {config.max_tokens:,}: the model's context of 4,096"
    assert evaluate.note.startswith(cut)
    assert evaluate.engine.max_model_len == 4096
    if name == "gpqa_diamond":
        letter = prompt.answer
        assert prompt.columns["options"][letter] == "Neon"
        assert sorted(prompt.columns["options"].values()) == ["Gold", "Iron", "Neon", "Zinc"]
        assert f"\n{letter}) Neon\n" in prompt.text + "\n"
    else:
        assert prompt.answer == answer
    next(map(evaluate.rewards.components.get, config.right_by)).check(prompt)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1",))


def test_packed_tests_that_are_no_text_are_never_unpickled(base: Path, tmp_path: Path) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    file = jsonl(tmp_path / "test.jsonl", [{**LIVECODEBENCH, "private_test_cases": packed}])
    (prompt,), evaluate = planned(base, "livecodebench", file)
    with pytest.raises(UserError, match=r"the packed tests name builtins\.eval: they may hold nothing but text"):
        evaluate.rewards.components["accuracy"].check(prompt)


def test_a_contest_problem_is_judged_by_all_its_tests(base: Path, tmp_path: Path) -> None:
    for name, row in (("livecodebench", LIVECODEBENCH), ("codeforces", CODEFORCES)):
        (prompt,), evaluate = planned(base, name, jsonl(tmp_path / f"{name}.jsonl", [row]))
        assert "stdin" in prompt.text
        code = evaluate.rewards.components["accuracy"]
        assert isinstance(code, Code)
        tests = hidden_tests(prompt)
        assert len(tests.inputs) == (2 if name == "livecodebench" else 1)
        assert code.verdict(tests, "print(sum(map(int, input().split())))").passed
        assert not code.verdict(tests, "print(3)").passed
        assert "Add them" not in str(prompt)  # the editorial tells how
    starter = "class Solution:\n    def add(self, a: int, b: int) -> int:"
    calls = json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}])
    row = {**LIVECODEBENCH, "starter_code": starter, "public_test_cases": calls, "private_test_cases": "[]"}
    row["metadata"] = json.dumps({"func_name": "add"})
    (prompt,), _ = planned(base, "livecodebench", jsonl(tmp_path / "starter.jsonl", [row]))
    assert starter in prompt.text
    assert hidden_tests(prompt).name == "Solution.add"


def test_problems_outside_the_window_are_left_out(base: Path, tmp_path: Path) -> None:
    days = ("2024-07-31", "2024-08-01", "2025-01-31T23:00:00", "2025-02-01")
    rows = [{**LIVECODEBENCH, "question_id": day, "question_content": day, "contest_date": day} for day in days]
    file = jsonl(tmp_path / "test.jsonl", rows)
    assert [prompt.id for prompt in planned(base, "livecodebench", file)[0]] == list(days[1:3])
    assert len(planned(base, "livecodebench", file, "data.since=2024-01-01", "data.until=''")[0]) == 4


def test_what_is_given_on_the_command_line_counts(base: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 2?", "answer": f"#### {i + 2}"} for i in range(100)]
    file = jsonl(tmp_path / "test.jsonl", rows)
    words = ("stage.evaluate.k=2", "stage.evaluate.max_tokens=64", 'data.wording="Briefly: {question}"')
    prompts, evaluate = planned(base, "gsm8k", file, *words)
    assert len(prompts) == 100  # all, where a plain evaluation during training takes a part
    assert prompts[3].messages == ({"role": "user", "content": "Briefly: 3 + 2?"},)
    assert (evaluate.config.k, evaluate.config.max_tokens, evaluate.note) == (2, 64, "")
    assert evaluate.engine.max_model_len < 200  # no more than is needed


def test_a_cache_too_small_for_the_context_is_said(base: Path, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "test.jsonl", [{"question": "2 + 2?", "answer": "#### 4"}])
    _, evaluate = planned(base, "gsm8k", file, "engine.rollout.kv_cache_gib=0.001")
    held = 2**30 // 1000 // (2 * 64 * 2 * 4) // 128 * 128  # keys and values of one head, two layers, float32
    assert evaluate.engine.max_model_len == held
    assert "engine.rollout.kv_cache_gib=0.001 holds" in evaluate.note


@pytest.mark.parametrize(
    ("name", "lines", "reason"),
    [
        ("gsm8k", ['{"question": "q", "answer": "#### 4"}', '{"question": "q2", '], "test.jsonl:2: "),
        ("gsm8k", ['{"question": "q", "answer": "#### 4"}', '{"question": "q2"}'], "test.jsonl:2: "),
        ("math_500", ['{"problem": "q", "answer": "4", "level": 1}', '{"problme": "q"}'], "test.jsonl:2: "),
        ("mmlu", ['{"question": "q", "choices": ["a", "b"], "answer": 1}', '{"question": "q", "answer": 1}'],
         "test.jsonl:2: got 'columns question, answer'; no options (or no question), which the rows before it have"),
        ("mmlu", ['{"question": "q", "choices": ["a", "b"], "answer": 2}'],
         "test.jsonl:1: answer: got 2; must be one of the options A, B"),
        ("mmlu", ['{"question": "q", "choices": ["a"], "answer": 0}'], "test.jsonl:1: choices: got '1 options'"),
        ("livecodebench", [json.dumps(LIVECODEBENCH), json.dumps(LIVECODEBENCH)[:-9]], "test.jsonl:2: "),
        ("livecodebench", [json.dumps(LIVECODEBENCH), '{"question_content": "q"}'],
         "test.jsonl:2: got 'columns question_content'; no tests (or no question), which the rows before it have"),
        ("livecodebench", [json.dumps({**LIVECODEBENCH, "private_test_cases": None, "public_test_cases": "[]"})],
         "an empty list of tests, which any program passes"),
        ("livecodebench", [json.dumps({**LIVECODEBENCH, "private_test_cases": "c29tZXRoaW5n"})],
         "neither JSON nor packed as LiveCodeBench packs"),
        ("livecodebench", [json.dumps({**LIVECODEBENCH, "contest_date": "last week"})],
         "test.jsonl:1: contest_date: got 'last week'; must be a date such as 2024-08-01"),
        ("livecodebench", [json.dumps({**LIVECODEBENCH, "contest_date": "2023-09-01"})],
         "data.since: got '2024-08-01 to 2025-01-31'; holds none of the 1 held-out problems"),
        ("codeforces", [json.dumps({**CODEFORCES, "examples": [], "official_tests": None})],
         "test.jsonl:1: got 'no tests'"),
        ("gpqa_diamond", [json.dumps({k: v for k, v in GPQA.items() if k != "Incorrect Answer 2"})],
         "test.jsonl:1: got \"no column 'Incorrect Answer 2'\""),
    ],
)  # fmt: skip
def test_a_broken_line_or_a_missing_column_is_named(
    name: str, lines: list[str], reason: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    file = f"benchmark.file={tmp_path / 'test.jsonl'}"
    assert cli.main(["plan", "job=eval", f"base={base}", f"benchmark={name}", file]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_offline_and_unknown_names_are_one_line(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, reasons in (
        ("gsm8k", ("benchmark.file: got 'openai/gsm8k/main/test*'; ", "not in its cache; or give its file")),
        ("gsm9k", ("benchmark: got 'gsm9k'; did you mean 'gsm8k'?", "math_500")),
    ):
        assert cli.main(["plan", "job=eval", f"base={base}", f"benchmark={name}"]) == 2
        error = capsys.readouterr().err
        assert all(reason in error for reason in reasons), error
        assert error.count("\n") == 1
    assert cli.main(["plan", "job=eval", f"base={base}", "data.heldout=x.jsonl", "data.wording=no"]) == 2
    assert "data.wording: got 'no'; must hold {question}" in capsys.readouterr().err


def test_mmlu_s_own_files_name_no_columns(tmp_path: Path) -> None:
    rows = [["In Z_7, 3 + 5?", "0", "1", "0", "3", "B"], ["Which, or what?", "A", "B", "C", "none, at all", "D"]]
    file = tmp_path / "test" / "abstract_algebra_test.csv"
    file.parent.mkdir()
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    first, second = load_prompts(str(tmp_path / "test"), split="test")
    assert first.text == "In Z_7, 3 + 5?\n\nA) 0\nB) 1\nC) 0\nD) 3"
    assert (first.answer, second.answer, second.columns["subject"]) == ("B", "D", "abstract_algebra")
    file.write_text("question,answer,A,B,C,D\nq,A,w,x,y,z\n")  # columns, of which the last is D
    (prompt,) = load_prompts(str(file))
    assert (prompt.answer, prompt.columns["options"]["D"]) == ("A", "z")
    file.write_text("q,w,x,y,z,B\nq,w,x,y,z\n")
    with pytest.raises(UserError, match=r"_test\.csv:2: got '5 values'"):
        load_prompts(str(file))


@pytest.mark.parametrize("written", ['["w", "x", "y"]', "['w', 'x', 'y']", '{"A": "w", "B": "x", "C": "y"}'])
def test_options_that_a_table_keeps_as_text_are_options(written: str, tmp_path: Path) -> None:
    row = {"question": "q", "subject": "s", "choices": written, "answer": "2"}
    (prompt,) = load_prompts(str(sheet(tmp_path / "t.csv", [row])))
    assert (prompt.task, prompt.answer, prompt.columns["options"]) == ("options", "C", {"A": "w", "B": "x", "C": "y"})
    for broken in ("['w' 'x' 'y']", "[w, x, y]", "[" * 5000):  # as numpy prints an array, for one
        with pytest.raises(UserError, match=r"t\.csv:2: choices: got .*must be a list of options"):
            load_prompts(str(sheet(tmp_path / "t.csv", [{**row, "choices": broken}])))


def test_a_contest_program_has_the_imports_that_its_benchmark_gives_it() -> None:
    starter = "class Solution:\n    def most(self, found: List[int]) -> Optional[int]:\n        "
    calls = json.dumps([{"input": "[1, 3, 2]", "output": "3", "testtype": "functional"}])
    row = {"public_test_cases": calls, "starter_code": starter, "metadata": '{"func_name": "most"}'}
    tests = hidden_tests(Prompt("p", "q", "code", "", columns=row))
    code = Code(total_s=60.0)
    assert code.verdict(tests, starter + "return max(found)").passed
    assert code.verdict(
        tests, "from __future__ import annotations\n" + starter + "return heapq.nlargest(1, found)[0]"
    ).why
    assert code.verdict(tests, starter + "return heapq.nlargest(1, Counter(found).keys())[0]").passed
    assert not code.verdict(tests, starter + "return min(found)").passed
    stdin = Prompt("p", "q", "code", "", columns={**LIVECODEBENCH, "private_test_cases": None})
    assert code.verdict(hidden_tests(stdin), "print(reduce(add, map(int, input().split())))").passed


def test_a_program_without_tests_is_refused_by_what_it_lacks() -> None:
    lacking = Prompt("p", "def f():\n", "code", "    return 1\n", columns={"test": "t"})
    with pytest.raises(UserError, match=r"prompt p: columns: got 'test'; no tests"):
        Right().check(lacking)


def test_other_layouts_of_multiple_choice(base: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "q0", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1, "category": "c"},  # MMLU-Pro
        {"question": "q1", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"},  # MedQA
        {"question": "q2", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},  # ARC
        {"question": "q3", "A": "x", "B": "y", "C": "z", "D": "v", "answer": "B"},  # C-Eval
        {"question": "q4", "options": ["A)21", "B)21.5", "C)22"], "correct": "B"},  # AQuA
        {"question": "q5", "choices": ["x", "y"], "answer": "y"},
    ]
    for place, row in enumerate(rows):
        (prompt,), _ = planned(base, "mmlu", jsonl(tmp_path / f"{place}.jsonl", [row]))
        assert (prompt.task, prompt.answer) == ("options", "B"), row
        assert prompt.columns["options"]["B"] in ("y", "21.5")
        assert "\nB) " + prompt.columns["options"]["B"] in prompt.text
        assert not {"answer", "choices", "answerKey", "answer_idx"} & set(prompt.columns)
