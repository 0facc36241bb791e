from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.cli import main
from framework.data.layouts.prompts import load_prompts
from framework.errors import UserError
from framework.rewards import code as code_module
from framework.rewards.base import RewardConfig
from framework.rewards.code import Code, assemble, extract_code, same_output
from framework.rewards.code_tests import CodeTests, hidden_tests
from framework.rewards.isolation import IsolatedScorer
from framework.rewards.sandbox.client import LimitsConfig
from framework.types import Prompt, ResponseGroup
from tests.contract.sample_rewards import response_of

PATIENT = Code(limits=LimitsConfig(wall_s=60.0), total_s=60.0)  # the machine may be busy
SQUARE = "print(int(input()) ** 2)"
HEAD = '''import math

def half(n):
    return n // 2

def square(n: int) -> int:
    """ The square.
    >>> square(2)
    4
    """
'''
CHECK = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(half(8)) == 16\n    assert candidate(-3) == 9\n"
BODY = "    return n * n\n"


def prompt_with(answer: str = "", text: str = "Square it.", **columns: Any) -> Prompt:
    return Prompt("p0", text, "code", answer, columns=columns)


def packed(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


IO = {"inputs": ["2\n", "3\n"], "outputs": ["4\n", "9\n"]}
CASES = [{"input": "2", "output": "4"}, {"input": "3", "output": "9"}]
SCRIPTS = [
    prompt_with(input_output=json.dumps(IO)),
    prompt_with(input_output={"inputs": [["2"]], "outputs": [["4"]]}),
    prompt_with(json.dumps(IO)),
    prompt_with(json.dumps(CASES)),
    prompt_with(tests=CASES),
    prompt_with(official_tests=CASES),
    prompt_with(public_tests={"input": ["2"], "output": ["4"]}, private_tests={"input": ["3"], "output": ["9"]}),
    prompt_with(public_test_cases=json.dumps([CASES[0] | {"testtype": "stdin"}]), private_test_cases=packed(CASES[1:])),
]
METADATA = json.dumps({"func_name": "square"})
CALLS = [
    {"input": "2\n", "output": "4", "testtype": "functional"},
    {"input": "-3", "output": "9", "testtype": "functional"},
]
STARTER = "class Solution:\n    def square(self, n: int) -> int:\n        "
FUNCTIONS = [
    prompt_with(BODY, HEAD, test=CHECK, entry_point="square"),
    prompt_with("def square(n): return n * n", test_list=["assert square(2) == 4", "assert square(-3) == 9"]),
    prompt_with(test_list=["assert isclose(square(-3), 9)"], test_imports=["from math import isclose"]),
    prompt_with(tests=["assert square(2) == 4", "assert square(-3) == 9"]),
    prompt_with(tests=[{"args": [2], "expected": 4}, {"args": [-3], "expected": 9}], entry_point="square"),
    prompt_with(input_output=json.dumps({"fn_name": "square", "inputs": [[2], [-3]], "outputs": [4, [9]]})),
    prompt_with(json.dumps({"assert_case": ["assert square(-3) == 9"]})),
    prompt_with(public_test_cases=json.dumps(CALLS), metadata=METADATA, starter_code="def square(n):"),
]


@pytest.mark.parametrize("prompt", SCRIPTS)
def test_scripts_are_judged_in_every_layout(prompt: Prompt) -> None:
    assert PATIENT(prompt, response_of(f"```python\n{SQUARE}\n```")) == 1.0
    assert PATIENT(prompt, response_of("```python\nprint(int(input()) * 3)\n```")) == 0.0
    PATIENT.check(prompt)


@pytest.mark.parametrize("prompt", FUNCTIONS)
def test_functions_are_judged_in_every_layout(prompt: Prompt) -> None:
    assert PATIENT(prompt, response_of("So:\n```python\ndef square(n):\n    return n * n\n```")) == 1.0
    for wrong in ("def square(n):\n    return abs(n) * 2", "def square(n):\n    pass", "pass", ""):
        assert PATIENT(prompt, response_of(f"```python\n{wrong}\n```")) == 0.0
    PATIENT.check(prompt)


def test_a_method_is_judged() -> None:
    prompt = prompt_with(public_test_cases=CALLS, metadata={"func_name": "square"}, starter_code=STARTER)
    assert PATIENT(prompt, response_of(STARTER + "return n * n")) == 1.0
    assert PATIENT(prompt, response_of(STARTER + "return n")) == 0.0


@pytest.mark.parametrize(
    ("columns", "answer", "reason"),
    [
        ({}, "42", "columns: got 'none'; no tests"),
        ({"tests": []}, "", "columns: got 'tests'; no tests"),
        ({"input_output": {"inputs": [], "outputs": []}}, "", "an empty list of tests"),
        ({"tests": ["x = 1"]}, "", "an empty list of tests"),
        ({"tests": ["assert len([1]) == 1"]}, "", "call nothing that the program defines"),
        ({"tests": ["assert f("]}, "", "SyntaxError"),
        ({"tests": [{"args": [1], "expected": 1}]}, "", "entry_point"),
        ({"tests": [{"input": 1}]}, "", "KeyError: 'output'"),
        ({"input_output": "{"}, "", "JSONDecodeError"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "", "1 inputs, but 0 outputs"),
        ({"public_test_cases": CALLS}, "", "func_name"),
        ({"private_test_cases": "no base64!"}, "", "neither JSON nor packed"),
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(os.getcwd))).decode()},
            "",
            "nothing but text",
        ),
        ({"test": "def check(candidate):", "entry_point": "f"}, "def f(): pass", "does not pass its tests: "),
        ({"test": CHECK, "entry_point": "square"}, "    return 3\n", "does not pass its tests: AssertionError"),
        ({"tests": CASES}, "print(input())", "does not pass its tests: case 1 of 2: printed '2"),
    ],
)
def test_tests_that_cannot_be_used_are_one_line(columns: dict[str, Any], answer: str, reason: str) -> None:
    with pytest.raises(UserError, match="prompt p0") as error:
        PATIENT.check(prompt_with(answer, HEAD, **columns))
    assert reason in str(error.value)


def test_packed_tests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.rewards.code_tests.MAX_UNPACKED", 1000)
    with pytest.raises(UserError, match="packed tests of more than"):
        hidden_tests(prompt_with(private_test_cases=packed([{"input": "x" * 5000, "output": ""}])))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\nor\n```python\nb\n```", "b"),
        ("```python\na\n```\nprints\n```\n9\n```", "a"),
        ("```\na\n```", "a"),
        ("```py\na", "a"),
        ("~~~python\na\n~~~", "a"),
        ("````python\n```\na\n````", "```\na"),
        ("  ```Python3\n  if a:\n      b\n  ```", "if a:\n    b"),
        ("```cpp\na\n```", None),
        ("a = 1\nb = 2\n", "a = 1\nb = 2"),
        ("\n    return 1\n", "    return 1"),
        ("", None),
        ("```python\n```", None),
        ("<think>```python\na\n```</think>```python\nb\n```", "b"),
        ("<think>```python\na\n```", None),
        ("<think>x</think> <answer>```python\na\n```</answer>", "a"),
        ("<think>x</think> <answer>print(1)</answer>", "print(1)"),
        ("x</think>\nprint(1)", "print(1)"),
    ],
)
def test_where_the_program_stands(text: str, code: str | None) -> None:
    assert extract_code(text) == code


@pytest.mark.parametrize("piece", ["```", "```python\n", "`", "~~~\n", "<answer>", "</think>", "```python\n```\n"])
def test_finding_the_program_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    extract_code(piece * 50_000)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "code",
    [BODY, BODY.rstrip(), "return n * n", "def square(n):\n    return n * n", "square = lambda n: n * n", HEAD + BODY],
)
def test_an_answer_may_go_on_from_the_head(code: str) -> None:
    source = assemble(code, hidden_tests(FUNCTIONS[0]))
    assert source is not None
    scope: dict[str, Any] = {}
    exec(source, scope)
    assert scope["square"](-3) == 9


@pytest.mark.parametrize("code", [" def square(n):\n    return n * n", "\tsquare = lambda n: n * n", f"  {HEAD}{BODY}"])
def test_blanks_between_a_tag_and_the_program_do_no_harm(code: str) -> None:
    for tests in (CodeTests(), hidden_tests(FUNCTIONS[0])):
        scope: dict[str, Any] = {}
        exec(assemble(code, tests) or "", scope)
        assert scope["square"](-3) == 9


def test_what_is_no_python_is_not_run() -> None:
    assert assemble("int main() { return 0; }", CodeTests()) is None
    assert assemble("int main() { return 0; }", hidden_tests(FUNCTIONS[0])) is None
    assert assemble("(" * 100_000, CodeTests()) is None
    assert assemble("\0", CodeTests()) is None


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1 2", "1  2 \n\n", True),
        ("1\r\n2", "1\n2\n", True),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("0.5", "0.5000001", True),
        ("0.5", ".5", True),
        ("0.5", "0.51", False),
        ("0.5", "nan", False),
        ("1e3", "1000", True),
        ("5", "5.0", False),
        ("YES", "yes", False),
        ("", "", True),
        ("", "x", False),
        ("1.0", "x", False),
        ("10.0", "1_0.0", False),
        ("0.5", "０.５", False),
        ("10.0", "+1e1", True),
    ],
)
def test_which_outputs_are_the_same(expected: str, found: str, same: bool) -> None:
    assert same_output(expected, found) is same


def test_all_cases_share_one_time_limit() -> None:
    prompt = prompt_with(tests=[{"input": str(n), "output": "1"} for n in range(100)])
    began = time.monotonic()
    found = replace(PATIENT, total_s=1.0).verdict(hidden_tests(prompt), "import time\ntime.sleep(0.2)\nprint(1)")
    assert not found.passed
    assert "more than" in found.why
    assert time.monotonic() - began < 10


def test_more_processes_need_namespaces() -> None:
    with pytest.raises(UserError, match=r"limits.processes: got 2; must be 1, or `least` must be namespaces"):
        Code(limits=LimitsConfig(processes=2))


def test_in_the_reward_process_a_hang_is_wrong_and_the_run_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    config = RewardConfig({"code": replace(PATIENT, total_s=0.5)}, time_limit_s=60.0)
    prompt = SCRIPTS[4]
    texts = ["while True: pass", SQUARE, "import os\nos.kill(os.getppid(), 9)", SQUARE]
    with IsolatedScorer(config) as scorer:
        scores = scorer.score(ResponseGroup(prompt, tuple(map(response_of, texts))))
        pid = scorer.pid
        assert [score.total for score in scores[:1]] == [0.0]
        assert scores[2].total == 0.0
        assert not any(score.error for score in scores)
    assert not Path(f"/proc/{pid}").exists()
    assert "code reward: programs run in a sandbox of level " in capfd.readouterr().err


def test_score_shows_the_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"id": "a", "task": "code", "prompt": HEAD, "answer": BODY, "test": CHECK, "entry_point": "square"}
    rows = [row | {"id": str(n), "response": text} for n, text in enumerate([f"```python\n{BODY}\n```", "    pass"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    limits = ["reward.components.code.limits.wall_s=50", "reward.components.code.total_s=50", "reward.time_limit_s=60"]
    assert main(["score", str(tmp_path / "rows.jsonl"), "reward=code", *limits]) == 0
    good, bad = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (good["score"], good["extracted"]) == (1.0, "return n * n")
    assert (bad["score"], bad["extracted"], bad["error"]) == (0.0, "    pass", None)


HUMANEVAL = os.environ.get("HUMANEVAL")


@pytest.mark.skipif(not HUMANEVAL, reason="the environment's HUMANEVAL names no file of the published problems")
def test_all_of_humaneval() -> None:
    prompts = load_prompts(str(HUMANEVAL))
    assert len(prompts) == 164
    for prompt in prompts:
        assert PATIENT.verdict(hidden_tests(prompt), prompt.answer).why == "", prompt.id
        for empty in ("", "    pass", "    return None"):
            assert not PATIENT.verdict(hidden_tests(prompt), empty).passed, prompt.id


SLOW_SCRIPT = f"import time\ntime.sleep(1)\n{SQUARE}"
SLOW_FUNCTION = "import time\ndef square(n):\n    time.sleep(0.5)\n    return n * n"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize(("prompt", "program"), [(SCRIPTS[0], SLOW_SCRIPT), (FUNCTIONS[3], SLOW_FUNCTION)])
def test_a_sandbox_that_hangs_is_replaced_and_no_answer_is_wrong_for_it(
    when: str, prompt: Prompt, program: str
) -> None:
    """Within a response's time: what hangs for longer counts as a wrong answer."""
    answer = response_of(f"```python\n{program}\n```")
    assert PATIENT(prompt, answer) == 1.0
    pid = code_module._open[0][3].pid
    stop = threading.Timer(0.5, os.kill, (pid, signal.SIGSTOP))
    if when == "before":
        os.kill(pid, signal.SIGSTOP)
    else:
        stop.start()
    began = time.monotonic()
    assert PATIENT(prompt, answer) == 1.0
    assert code_module._open[0][3].pid != pid
    assert time.monotonic() - began < 30  # not the 60 s that a program may take, nor a minute of waiting for the dead
