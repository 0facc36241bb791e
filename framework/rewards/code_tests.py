"""The hidden tests of a programming problem, in the columns in which public data sets publish them.

    HumanEval      test (defines check(candidate)), entry_point; the prompt is the head of the function
    MBPP           test_list (assert statements), test_setup_code or test_imports
    LiveCodeBench  public_test_cases, private_test_cases: [{input, output, testtype}] or packed; metadata: {func_name}
    APPS, TACO     input_output: {inputs, outputs, fn_name}
    CodeContests   public_tests, private_tests, generated_tests: {input: […], output: […]}
    Codeforces     official_tests, else examples: [{input, output}]
    verl           the reference answer: JSON of {inputs, outputs, fn_name} or {assert_case}
    own            tests: a list of {input, output}, of {args, expected} (with entry_point), or of assert statements

Texts of JSON are read wherever a list or an object is expected. Tests travel with the prompt, not with the program.
"""

from __future__ import annotations

import ast
import base64
import binascii
import builtins
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from framework.errors import UserError
from framework.rewards.sandbox.plain import NotPlain, encode
from framework.types import Prompt

MAX_UNPACKED = 1 << 28  # bytes
_CASES = ("public_tests", "private_tests", "generated_tests")
# What LiveCodeBench's own runner puts before a program: its starting code is written with List and Optional.
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
_IMPORTS = "\n".join(
    [
        *(f"from {name} import *" for name in (*_MODULES, "builtins", "typing")),
        f"import {', '.join(_MODULES)}",
        "sys.setrecursionlimit(50_000)",
    ]
)
# columns that only problems with tests have
_MARKS = ("test_list", "private_test_cases", "public_test_cases", "input_output", "official_tests", *_CASES)


@dataclass(frozen=True)
class InputCase:
    """What a script reads, and what it must print."""

    given: str
    expected: str


@dataclass(frozen=True)
class CodeTests:
    """Either cases of input and output, or calls: what `framework.rewards.sandbox.program.run_tests` is given."""

    inputs: tuple[InputCase, ...] = ()
    calls: Mapping[str, Any] | None = field(default=None, hash=False)
    head: str = ""  # what an answer may go on from: imports, helpers and the head of the function
    name: str = ""  # of the function that is asked for
    reference: str = ""  # a program that is known to be right
    before: str = ""  # imports that the benchmark itself puts in front of every program


@lru_cache(maxsize=16)  # a group's responses are judged one after the other
def hidden_tests(prompt: Prompt) -> CodeTests:
    """Return a prompt's tests; raises UserError for one that has none, or tests that cannot be read."""
    columns = prompt.columns
    try:
        found = _find(prompt, columns)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, SyntaxError, IndexError) as error:
        raise UserError(f"prompt {prompt.id}: tests", f"{type(error).__name__}: {error}"[:200], _ALLOWED) from None
    if found is None:
        raise UserError(f"prompt {prompt.id}: columns", ", ".join(columns) or "none", f"no tests: {_ALLOWED}")
    if not found.inputs and not found.calls:
        raise UserError(f"prompt {prompt.id}: tests", [], "an empty list of tests, which any program passes")
    return found


def has_tests(prompt: Prompt) -> bool:
    """Whether a prompt's data has hidden tests, whatever state they are in."""
    columns = prompt.columns
    if (columns.get("test") and columns.get("entry_point")) or any(columns.get(key) for key in _MARKS):
        return True
    if any(_is_tests(columns.get(key)) for key in ("tests", "examples")):
        return True
    return prompt.answer.lstrip().startswith(("{", "[")) and _is_tests(prompt.answer)


def _is_tests(value: Any) -> bool:
    try:
        found = _json(value)
    except ValueError:
        return False
    if isinstance(found, Mapping):
        return "inputs" in found or "assert_case" in found
    return isinstance(found, list) and bool(found) and all(map(_is_case, found))


def _is_case(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "input" in value or "args" in value
    return isinstance(value, str) and value.lstrip().startswith("assert")


_ALLOWED = "a prompt for the code reward needs tests as framework/rewards/code_tests.py lists them"


def _find(prompt: Prompt, columns: Mapping[str, Any]) -> CodeTests | None:
    name = str(columns.get("entry_point") or "")
    if columns.get("test") and name:
        return _humaneval(prompt, str(columns["test"]), name)
    if columns.get("test_list"):
        before = columns.get("test_setup_code") or "\n".join(_list(columns.get("test_imports") or []))
        return _asserts(_list(columns["test_list"]), str(before), prompt.answer)
    if columns.get("private_test_cases") or columns.get("public_test_cases"):
        return _livecodebench(columns)
    if columns.get("input_output"):
        return _apps(_json(columns["input_output"]), prompt.answer)
    if any(columns.get(key) for key in _CASES):
        both = [_json(columns[key]) for key in _CASES if columns.get(key)]
        return CodeTests(tuple(_case(*pair) for part in both for pair in _pairs(part["input"], part["output"])))
    if columns.get("tests"):
        return _own(_list(columns["tests"]), name, prompt.answer)
    for key in ("official_tests", "examples"):
        if columns.get(key):
            return CodeTests(tuple(_case(case["input"], case["output"]) for case in _list(columns[key])))
    if prompt.answer.lstrip().startswith(("{", "[")):
        found = json.loads(prompt.answer)
        if isinstance(found, list):
            return _own(found, name, "")
        if "assert_case" in found:
            return _asserts(_list(found["assert_case"]), "", "")
        return _apps(found, "")
    return None


def _humaneval(prompt: Prompt, test: str, name: str) -> CodeTests:
    compile(prompt.text, "<prompt>", "exec", dont_inherit=True)
    calls = {"prelude": prompt.text, "source": test, "names": [name], "check": "check"}
    return CodeTests((), calls, prompt.text, name, prompt.answer)


def _asserts(tests: Sequence[Any], before: str, answer: str) -> CodeTests:
    """Assert statements; what they call and neither they nor Python define is the program's."""
    source = "\n".join(str(test) for test in tests)
    tree, known = ast.parse(source), _defined(ast.parse(before)) | set(dir(builtins))
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        return CodeTests()
    loaded = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    names = [name for name in dict.fromkeys(loaded) if name not in known | _defined(tree)]
    if not names:
        raise ValueError("the assert statements call nothing that the program defines")
    calls = {"prelude": before, "source": source, "names": names, "check": ""}
    return CodeTests((), calls, "", names[0], _program(answer))


def _livecodebench(columns: Mapping[str, Any]) -> CodeTests:
    cases = [case for key in ("public_test_cases", "private_test_cases") for case in _packed(columns.get(key))]
    if not cases or cases[0].get("testtype", "stdin") == "stdin":
        return CodeTests(tuple(_case(case["input"], case["output"]) for case in cases), before=_IMPORTS)
    name = _json(columns.get("metadata") or "{}").get("func_name")
    if not name:
        raise ValueError("tests that call a function need its name in metadata.func_name")
    found = [
        ([json.loads(line) for line in str(case["input"]).splitlines() if line.strip()], json.loads(case["output"]))
        for case in cases
    ]
    head = str(columns.get("starter_code") or "")
    called = f"Solution.{name}" if "class Solution" in head or not head else str(name)
    return replace(_calls(called, found), before=_IMPORTS)


def _apps(found: Mapping[str, Any], answer: str) -> CodeTests:
    pairs = list(_pairs(found["inputs"], found["outputs"]))
    name = found.get("fn_name")
    if not name:
        return CodeTests(tuple(_case(*pair) for pair in pairs), reference=_program(answer))
    calls = [(_json(given), _json(wanted)) for given, wanted in pairs]
    return _calls(str(name), calls, wrapped=True)


def _own(tests: Sequence[Any], name: str, answer: str) -> CodeTests:
    if all(isinstance(test, str) for test in tests):
        return _asserts(tests, "", answer)
    if all("input" in test for test in tests):
        cases = tuple(_case(test["input"], test["output"]) for test in tests)
        return CodeTests(cases, reference=_program(answer))
    if not name:
        raise ValueError("tests with args need the column entry_point, the function's name")
    return _calls(name, [(test["args"], test["expected"]) for test in tests], answer)


def _calls(name: str, cases: Iterable[tuple[Sequence[Any], Any]], answer: str = "", wrapped: bool = False) -> CodeTests:
    """Calls with arguments; `wrapped` values may stand in a list of their own, as APPS has them."""
    found = [{"args": _carried(list(args)), "expected": _carried(wanted), "wrapped": wrapped} for args, wanted in cases]
    return CodeTests((), {"name": name, "cases": found} if found else None, "", name, _program(answer))


def _carried(value: Any) -> Any:
    try:
        return json.loads(encode(value))
    except NotPlain as error:
        raise ValueError(str(error)) from None


def _case(given: Any, expected: Any) -> InputCase:
    return InputCase(_text(given), _text(expected))


def _text(value: Any) -> str:
    if isinstance(value, list):  # of lines
        return "\n".join(map(str, value))
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise TypeError(f"input and output must be texts, not {type(value).__name__}")
    return str(value)


def _pairs(inputs: Any, outputs: Any) -> Iterator[tuple[Any, Any]]:
    inputs, outputs = _list(inputs), _list(outputs)
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs, but {len(outputs)} outputs")
    return zip(inputs, outputs, strict=True)


def _list(value: Any) -> list[Any]:
    found = _json(value)
    if not isinstance(found, list):
        raise TypeError(f"must be a list, not {type(found).__name__}")
    return found


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


class _TextsAlone(pickle.Unpickler):
    """Reads texts, numbers and lists; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse."""
        raise pickle.UnpicklingError(f"the packed tests name {module}.{name}: they may hold nothing but text")


def _packed(value: Any) -> list[Any]:
    """LiveCodeBench's cases: JSON, or base64 of zlib of a pickled text of JSON."""
    if not isinstance(value, str):
        return _list(value or [])
    try:
        return _list(value)
    except json.JSONDecodeError:
        pass
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(value, validate=True), MAX_UNPACKED)
        if unpacker.unconsumed_tail:
            raise ValueError(f"packed tests of more than {MAX_UNPACKED >> 20} MB")
        return _list(_TextsAlone(io.BytesIO(data)).load())
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"neither JSON nor packed as LiveCodeBench packs: {error}") from None


def _defined(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def _program(answer: str) -> str:
    """The reference answer, if it is a program: something that Python reads as more than a value."""
    try:
        body = ast.parse(answer).body
    except (SyntaxError, ValueError):
        return ""
    is_value = all(isinstance(part, ast.Expr) and not isinstance(part.value, ast.Call) for part in body)
    return "" if is_value else answer
