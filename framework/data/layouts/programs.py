"""Programming problems in the layouts of public data sets, turned into rows of ours: a text, and the columns of tests.

    MBPP           text or prompt, code (a program that is right), test_list
    APPS, TACO     question, input_output
    CodeContests   description, public_tests, private_tests, generated_tests
    own            prompt (or text), tests
    LiveCodeBench  question_content, starter_code, public_test_cases, private_test_cases, contest_date, difficulty
    Codeforces     title, description, input_format, output_format, note, examples, official_tests, contest_id, rating

There need be no reference answer: hidden tests judge (`framework.rewards.code_tests`). How LiveCodeBench's and
Codeforces' problems are put is ours.
"""

from __future__ import annotations

from typing import Any

from framework.data.layouts.columns import Field, short, text_of
from framework.data.readers import Row
from framework.errors import UserError

_CODE_TESTS = ("private_test_cases", "public_test_cases")
_FORCES_TESTS = ("official_tests", "examples")
_ANY_TESTS = ("test_list", "input_output", "public_tests", "private_tests", "tests")
_TEXT = Field("text", ("prompt", "question", "problem", "description"))
_ANSWER = Field("answer", ("solution", "ground_truth", "label", "target"))
_STARTER = "Complete this code; answer with all of it:\n```python\n{}\n```"
_STDIN = "Write a whole program that reads the input from stdin and prints the answer to stdout."


def program_row(row: Row) -> Row | None:
    """Return the row with `text`, an empty `answer` and the task `code`; None if it is no problem of a contest.

    Raises UserError for one without a text, or without tests.
    """
    fields = row.fields
    if "question_content" in fields and any(name in fields for name in _CODE_TESTS):
        text, tests = _livecodebench(row), _CODE_TESTS
    elif "description" in fields and any(name in fields for name in _FORCES_TESTS):
        text, tests = _codeforces(row), _FORCES_TESTS
    elif (found := _with_tests(row)) is not None:
        return found
    else:
        return None
    if not any(fields.get(name) for name in tests):
        raise UserError(row.where, "no tests", f"a problem needs some in {' or '.join(tests)}")
    used = {"question_content", "description", "input_format", "output_format", "note", "time_limit", "memory_limit"}
    used |= {"question_title", "title", "editorial", "answer", "prompt"}
    kept: dict[str, Any] = {str(key): value for key, value in fields.items() if key not in used}
    if kept.get("question_id") is not None:
        kept["task_id"] = kept.pop("question_id")
    return Row(row.where, {**kept, "text": text, "answer": "", "task": "code"})


def _with_tests(row: Row) -> Row | None:
    """A row that has tests and no answer to compare with."""
    fields = row.fields
    question, answer = _TEXT.find(fields), _ANSWER.find(fields)
    tested = any(fields.get(name) for name in _ANY_TESTS) or (fields.get("test") and fields.get("entry_point"))
    if question is None or not tested or (answer and fields[answer] != "") or fields.get("canonical_solution"):
        return None
    code = fields.get("code")
    kept = {str(key): value for key, value in fields.items() if key not in (question, answer, "code")}
    return Row(row.where, {"task": "code", **kept, "text": fields[question], "answer": code or ""})


def _livecodebench(row: Row) -> str:
    question = text_of(row.fields["question_content"], f"{row.where}: question_content").strip()
    starter = str(row.fields.get("starter_code") or "").rstrip()
    return f"{question}\n\n{_STARTER.format(starter) if starter else _STDIN}"


def _codeforces(row: Row) -> str:
    fields = row.fields
    parts = [text_of(fields["description"], f"{row.where}: description").strip()]
    named = (("title", "# {}"), ("input_format", "## Input\n{}"), ("output_format", "## Output\n{}"))
    for name, form in (*named, ("note", "## Note\n{}")):
        if fields.get(name):
            part = form.format(str(fields[name]).strip())
            parts = [part, *parts] if name == "title" else [*parts, part]
    for case in _cases(fields.get("examples"), f"{row.where}: examples"):
        parts.append(f"## Example\nInput:\n{case['input']}\nOutput:\n{case['output']}")
    return "\n\n".join([*parts, _STDIN])


def _cases(found: Any, where: str) -> list[Any]:
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(c, dict) and {"input", "output"} <= c.keys() for c in found):
        raise UserError(where, short(found), "must be a list of {input, output}")
    return found
