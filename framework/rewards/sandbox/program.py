"""What runs inside the sandbox: a program as a script, a program whose functions are called, and the tests that call.

The tests run in a process of their own, shut in like the program. Their `candidate` writes a call's arguments as plain
data to the program's process and reads plain data back: no object, no exception class and no output of the program
reaches them. A program that prints, exits, changes `assert`'s surroundings or returns objects that equal everything
therefore changes nothing but its own answers.

What cannot be carried: arguments and values that are no plain data (functions, open files, objects of classes of their
own, generators), changes that a function makes to its arguments, and attributes of the candidate. Of an exception
the tests see the built-in class of its name.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import sys
import types
from typing import Any, NoReturn

from framework.rewards.sandbox.plain import NotPlain, decode, encode

SOURCE, REPLIES_IN, CALLS_OUT, VERDICT = 3, 4, 5, 6  # descriptors of the tests' process
CALLS_IN, REPLIES_OUT = 4, 5  # and of the program's
MAX_LINE = 16 << 20  # bytes of one call or reply
_TOLERANCE = 1e-6
_READ, _WRITE, _EXIT = os.read, os.write, os._exit  # before a program replaces them: its own errors stay readable


def run_script() -> NoReturn:
    """Run the source as `__main__`: input on descriptor 0, output on 1; ends as Python would end."""
    _leave(_execute(_source(), "__main__"))


def run_functions() -> NoReturn:
    """Run the source, then answer calls to what it defines until there are no more."""
    module = _module("solution")
    code = _execute(_source(), "solution", module)
    if code == 0:
        lines = _Lines(CALLS_IN)
        while (line := lines.next()) is not None:
            _send(REPLIES_OUT, _answer(module, line))
    _leave(code)


def run_tests() -> NoReturn:
    """Run the tests that the source describes against the program's process, and say whether they pass."""
    verdict = {"passed": False, "why": ""}
    try:
        _judge(json.loads(_source()))
        verdict["passed"] = True
    except BaseException as error:  # any end but the last line of the tests is a failure
        verdict["why"] = f"{type(error).__name__}: {error}"[:500]
    _send(VERDICT, json.dumps(verdict))
    _leave(0)


def _source() -> str:
    with os.fdopen(SOURCE, "rb") as file:
        return file.read().decode("utf-8", errors="replace")


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    return module


def _execute(source: str, name: str, module: types.ModuleType | None = None) -> int:
    """Run the source; return its exit code. A traceback goes to standard error."""
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), (module or _module(name)).__dict__)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as error:
        place = error.__traceback__ and error.__traceback__.tb_next  # without this file's own line
        sys.excepthook(type(error), error.with_traceback(place), place)
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """Wait for the program's threads, call what it registered, write what is buffered, and end."""
    try:
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = code or 1
    _EXIT(code & 0xFF)


def _answer(module: types.ModuleType, line: bytes) -> str:
    try:
        call = json.loads(line)
        target: Any = module
        for part in call["name"].split("."):
            if isinstance(target, type):
                target = target()  # a method of LeetCode's `class Solution`
            try:
                target = getattr(target, part)
            except AttributeError:
                raise NameError(f"name {call['name']!r} is not defined") from None
        value = target(*decode(json.dumps(call["args"])), **decode(json.dumps(call["kwargs"])))
        return json.dumps({"value": json.loads(encode(value))})
    except BaseException as error:
        return json.dumps({"error": type(error).__name__, "text": f"{error}"[:500]})


class _Proxy:
    """Stands in the tests for a function of the program."""

    def __init__(self, name: str, lines: _Lines) -> None:
        self.__name__, self._lines = name, lines

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the program's function; raises what it raises, as the built-in exception of that name."""
        packed = {"args": json.loads(encode(args)), "kwargs": json.loads(encode(kwargs))}
        _send(CALLS_OUT, json.dumps({"name": self.__name__, **packed}))
        line = self._lines.next()
        if line is None:
            raise EOFError("the program ended before it answered")
        reply = json.loads(line)
        if "value" in reply:
            return decode(json.dumps(reply["value"]))
        kind = getattr(builtins, str(reply["error"]), None)
        if not isinstance(kind, type) or not issubclass(kind, Exception) or kind is NotPlain:
            kind = RuntimeError
        try:
            raised = kind(str(reply["text"]))
        except TypeError:  # UnicodeError's subclasses want more
            raised = RuntimeError(str(reply["text"]))
        raise raised


def _judge(tests: dict[str, Any]) -> None:
    """Run tests: `cases` of arguments and values, or `source` with what stands before it and the function it calls."""
    lines = _Lines(REPLIES_IN)
    if "cases" in tests:
        candidate = _Proxy(tests["name"], lines)
        for place, case in enumerate(tests["cases"], start=1):
            found = candidate(*decode(json.dumps(case["args"])))
            wanted = decode(json.dumps(case["expected"]))
            right = same(wanted, found) or (
                case.get("wrapped") and isinstance(wanted, list) and len(wanted) == 1 and same(wanted[0], found)
            )
            assert right, f"case {place}: {found!r}, not {wanted!r}"
        return
    module = _module("tests")
    exec(compile(tests["prelude"], "<prelude>", "exec", dont_inherit=True), module.__dict__)
    proxies = {name: _Proxy(name, lines) for name in tests["names"]}
    module.__dict__.update(proxies)
    exec(compile(tests["source"], "<tests>", "exec", dont_inherit=True), module.__dict__)
    if tests["check"]:
        module.__dict__[tests["check"]](proxies[tests["names"][0]])


def same(wanted: Any, found: Any) -> bool:
    """Whether a value is the wanted one: tuples count as lists, and a float may be off by 1e-6."""
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple):
        return len(wanted) == len(found) and all(map(same, wanted, found))
    if isinstance(wanted, dict) and isinstance(found, dict):
        return wanted.keys() == found.keys() and all(same(wanted[key], found[key]) for key in wanted)
    if isinstance(wanted, float) and isinstance(found, int | float) and not isinstance(found, bool):
        return wanted == found or math.isclose(wanted, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(wanted == found)


class _Lines:
    """Reads lines from a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._received = descriptor, bytearray()

    def next(self) -> bytes | None:
        """Return the next line; None at the end, or where one is too long."""
        looked = 0
        while (end := self._received.find(b"\n", looked)) < 0:
            looked = len(self._received)
            block = _READ(self._descriptor, 1 << 16)
            if not block or looked > MAX_LINE:
                return None
            self._received += block
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


def _send(descriptor: int, line: str) -> None:
    data = memoryview(line.encode() + b"\n")
    while data:
        data = data[_WRITE(descriptor, data) :]
