"""Code reward: does the program in the answer pass the hidden tests?"""

from __future__ import annotations

import ast
import math
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, TypeVar

from framework.bounds import Seconds, bounded
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.rewards.code_tests import CodeTests, InputCase, hidden_tests
from framework.rewards.sandbox.client import LevelName, LimitsConfig, Sandbox, SandboxBroken, Verdict
from framework.types import Prompt, Response

PYTHON = ("python", "python3", "py", "python2")
MAX_SOURCE = 1 << 20  # characters
BROKEN_S = 0.2  # that a sandbox which does not answer is given to end by itself
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*")
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?:\.\d*)?[eE][-+]?\d+)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)  # no "1_0", no digits of another script
_TOLERANCE = 1e-6
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
@bounded
class Code(Reward):
    """1 if the program in the answer passes every hidden test of its prompt, else 0 (R1v2 B.3.1: compiler and tests).

    The tests come with the prompt (see `framework.rewards.code_tests`). The program runs in a sandbox (see
    `framework.rewards.sandbox.confine`) that never holds expected values: output is compared here, and tests that call
    functions run in another process. Partial credit is not stated in the paper; there is none.
    """

    limits: LimitsConfig = LimitsConfig()  # of one run
    total_s: Seconds = 9.0  # of all runs of one response; keep it below reward.time_limit_s
    least: LevelName = "filters"  # the weakest sandbox that will do
    packages: tuple[str, ...] = ()  # that programs may import beside the standard library, e.g. numpy

    fails_as_wrong: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.limits.processes > 1 and self.least != "namespaces":
            allowed = "must be 1, or `least` must be namespaces: nothing weaker ends several processes for sure"
            raise UserError("limits.processes", self.limits.processes, allowed)

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0. Raises SandboxBroken if the sandbox itself fails."""
        code = extract_code(prompt.opened + response.text)
        return float(code is not None and self.verdict(hidden_tests(prompt), code).passed)

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        """Return the program that the response gives, or None."""
        return extract_code(prompt.opened + response.text)

    def check(self, prompt: Prompt) -> None:
        """Raise UserError unless the prompt has tests that can be run, which its own solution passes if it has one."""
        if fault := _reference_fault(self, prompt):
            raise UserError(f"prompt {prompt.id}: answer", prompt.answer[:200], f"does not pass its tests: {fault}")

    def prepare(self) -> None:
        """Say how strong the sandbox is here; raises UserError if it is weaker than `least`."""
        with Sandbox(self.least, self.packages) as sandbox:
            why = f" ({'; '.join(sandbox.reasons)})" if sandbox.reasons else ""
            print(f"code reward: programs run in a sandbox of level {sandbox.level}{why}", file=sys.stderr, flush=True)

    def verdict(self, tests: CodeTests, code: str) -> Verdict:
        """Run a program against tests."""
        source = assemble(code, tests)
        if source is None:
            return Verdict(False, "is no Python")
        if tests.before and _compiles(whole := f"{tests.before}\n{source}"):  # not behind `from __future__ import …`
            source = whole
        if tests.calls is not None:
            calls, limits = tests.calls, replace(self.limits, wall_s=min(self.limits.wall_s, self.total_s))
            return self._in_sandbox(lambda sandbox: sandbox.judge(source, calls, limits))
        deadline = time.monotonic() + self.total_s
        for place, case in enumerate(tests.inputs, start=1):
            left = deadline - time.monotonic()
            if left <= 0.01:
                return Verdict(False, f"more than {self.total_s:g} s, in case {place} of {len(tests.inputs)}")
            found = self._run_case(source, case, replace(self.limits, wall_s=min(self.limits.wall_s, left)))
            if not found.passed:
                return Verdict(False, f"case {place} of {len(tests.inputs)}: {found.why}")
        return Verdict(True)

    def _run_case(self, source: str, case: InputCase, limits: LimitsConfig) -> Verdict:
        ended = self._in_sandbox(lambda sandbox: sandbox.run(source, case.given.encode(), limits))
        if ended.reason:
            last = ended.errors.strip().rpartition("\n")[2]
            return Verdict(False, ended.reason + (f": {last}" if last else ""))
        try:
            found = ended.output.decode()
        except UnicodeDecodeError:
            return Verdict(False, "its output is not UTF-8")
        if same_output(case.expected, found):
            return Verdict(True)
        return Verdict(False, f"printed {found[:200]!r}, not {case.expected[:200]!r}")

    def _in_sandbox(self, action: Callable[[Sandbox], T]) -> T:
        """Do something with this process's sandbox; a broken one is replaced once."""
        try:
            return action(_sandbox(self.least, self.packages))
        except SandboxBroken:
            _close_sandbox(BROKEN_S)
        try:
            return action(_sandbox(self.least, self.packages))
        except SandboxBroken:
            _close_sandbox(BROKEN_S)
            raise


_open: list[tuple[int, LevelName, tuple[str, ...], Sandbox]] = []  # at most one, of the process with this id


def _sandbox(least: LevelName, packages: tuple[str, ...]) -> Sandbox:
    """This process's sandbox, started when it is first needed: processes that score are forked from another."""
    if _open and _open[0][:3] != (os.getpid(), least, packages):
        _close_sandbox()
    if not _open:
        _open.append((os.getpid(), least, packages, Sandbox(least, packages)))
    return _open[0][3]


def _close_sandbox(wait_s: float = 10.0) -> None:
    while _open:
        owner, _, _, sandbox = _open.pop()
        if owner == os.getpid():
            sandbox.close(wait_s)


@lru_cache(maxsize=256)  # asked once for each group
def _reference_fault(reward: Code, prompt: Prompt) -> str:
    """Why a prompt's own solution does not pass; empty if it does, or there is none."""
    tests = hidden_tests(prompt)
    if not tests.reference:
        return ""
    found = reward.verdict(tests, tests.reference)
    return "" if found.passed else found.why or "it fails"


def extract_code(text: str) -> str | None:
    """Return the program of a response, or None.

    It stands behind the reasoning, and in `<answer>…</answer>` if there is one: the last fenced block of Python, else
    the last without a language, else, where nothing is fenced, all of it.
    """
    if "</think>" in text:
        text = text.rpartition("</think>")[2]
    elif "<think>" in text:
        return None  # it never came to an answer
    if (start := text.rfind("<answer>")) >= 0:
        text = text[start + len("<answer>") :].partition("</answer>")[0]
    blocks = _fenced(text)
    if not blocks:
        raw = text.rstrip().strip("\n")
        return raw if raw.strip() and len(raw) <= MAX_SOURCE else None
    for languages in (PYTHON, ("",)):
        found = [body for language, body in blocks if language in languages]
        if found:
            return found[-1] if found[-1].strip() and len(found[-1]) <= MAX_SOURCE else None
    return None


def _fenced(text: str) -> list[tuple[str, str]]:
    """Fenced blocks as (language, body); one that is not closed goes to the end. Takes linear time."""
    blocks: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.split("\n"):
        mark = _FENCE.fullmatch(line.rstrip("\r"))
        if not fence:
            if mark:
                fence = mark[1]
                blocks.append((mark[2].lower().strip("{}.:"), []))
        elif mark and mark[1].startswith(fence) and not mark[2]:
            fence = ""
        else:
            blocks[-1][1].append(line)
    return [(language, textwrap.dedent("\n".join(body)).rstrip()) for language, body in blocks]


def assemble(code: str, tests: CodeTests) -> str | None:
    """Return the whole program of an answer: as it is, or as what goes on from the head that the prompt gave.

    None if it is no Python either way.
    """
    for text in dict.fromkeys((code, code.lstrip(" \t"), textwrap.dedent(code))):  # as in `<answer> def f(x): …`
        if not _compiles(text):
            continue
        if not tests.head:
            return text
        if tests.name in _top_names(text):
            whole = f"{tests.head}\n\n{text}"  # the prompt's imports and helpers stay there
            return whole if _compiles(whole) else text
    if not tests.head:
        return None
    head = tests.head.rstrip(" ")
    for text in (code, textwrap.indent(textwrap.dedent(code), "    ")):
        whole = head + ("" if head.endswith("\n") else "\n") + text
        if _compiles(whole):
            return whole
    return None


def _compiles(source: str) -> bool:
    try:
        compile(source, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _top_names(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name for alias in node.names)
    return found


def same_output(expected: str, found: str) -> bool:
    """Whether a script printed what it should: white space at the ends of lines and blank lines at the end aside.

    Where the expected text has a number with a point or an exponent, 1e-6 more or less is the same.
    """
    wanted, got = (text.replace("\r\n", "\n").rstrip().split("\n") for text in (expected, found))
    return len(wanted) == len(got) and all(map(_same_line, wanted, got))


def _same_line(wanted: str, got: str) -> bool:
    if wanted.rstrip() == got.rstrip():
        return True
    words, others = wanted.split(), got.split()
    return len(words) == len(others) and all(map(_same_word, words, others))


def _same_word(wanted: str, got: str) -> bool:
    if wanted == got:
        return True
    if not _FLOAT.fullmatch(wanted) or len(got) > 40 or not _NUMBER.fullmatch(got):
        return False
    return math.isclose(float(wanted), float(got), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
