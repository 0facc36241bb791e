"""What an honest program may do in the sandbox, how its limits are told, and that nothing outlives its keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.rewards.sandbox import confine, kernel
from framework.rewards.sandbox.client import LimitsConfig, Sandbox
from tests.unit.rewards.sandbox.test_hostile import children

LIMITS = LimitsConfig(wall_s=30.0)
CASES = {"name": "f", "cases": [{"args": [3], "expected": 9}]}


@pytest.fixture(scope="module", params=confine.LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    try:
        found = Sandbox("limits", levels=(request.param,))
    except UserError as error:
        pytest.skip(f"this kernel: {error}")
    with found:
        assert found.level == request.param
        yield found


@pytest.mark.parametrize(
    ("source", "given", "output"),
    [
        ("print(input()[::-1])", "abc\n", "cba\n"),
        ("import sys\nfor line in sys.stdin: print(int(line) * 2)", "1\n2", "2\n4\n"),
        ("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", "ü中\n", "ü中\n"),
        ("print(open(0).read(), end='')", "x y", "x y"),
        ("if __name__ == '__main__': print(1)", "", "1\n"),
        ("import heapq, collections, bisect, math, itertools, re, random, decimal\nprint(math.comb(5, 2))", "", "10\n"),
        ("open('note.txt', 'w').write('here')\nprint(open('note.txt').read())", "", "here\n"),
        ("import os\nprint(os.listdir('.'))", "", "[]\n"),  # what the program before wrote is gone
        ("import sys\nprint('on the way')\nsys.exit()", "", "on the way\n"),
        ("import os, sys\nprint('lost', file=open(os.devnull, 'w'))\nprint('kept')", "", "kept\n"),
        ("import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))", "", "(0, 0)\n"),
        ("import atexit\natexit.register(print, 'last')", "", "last\n"),
        ("print(hash('a') == hash('a'), len({1, 2}))", "", "True 2\n"),
    ],
)
def test_an_honest_script_runs(sandbox: Sandbox, source: str, given: str, output: str) -> None:
    ended = sandbox.run(source, given.encode(), LIMITS)
    assert (ended.output.decode(), ended.code, ended.reason) == (output, 0, ""), ended.errors


def test_threads_and_the_rest_of_the_library(sandbox: Sandbox) -> None:
    if sandbox.level == "limits":
        pytest.skip("limits alone allow no threads, and may not read the library")
    source = "import threading, sqlite3, csv\nthread = threading.Thread(target=lambda: print('in it'))\nthread.start()"
    assert sandbox.run(source, b"", LIMITS).output == b"in it\n"
    source = "import asyncio\nasync def f(): print(await asyncio.sleep(0, 'slept'))\nasyncio.run(f())"
    assert sandbox.run(source, b"", LIMITS).output == b"slept\n"


@pytest.mark.parametrize(
    ("source", "change", "reason"),
    [
        ("while True: pass", {"cpu_s": 1}, "more than 1 s of processor time"),
        ("import time\ntime.sleep(60)", {"wall_s": 0.3}, "more than 0.3 s"),
        ("print('x' * 3000)", {"output_kb": 2}, "more than 2 KB of output"),
        ("x = bytearray(1 << 27)", {"memory_mb": 128}, "exit code 1"),
        ("open('x', 'wb').write(bytes(2 << 20))", {"files_mb": 1}, "exit code 1"),
        ("raise SystemExit(7)", {}, "exit code 7"),
        ("import os\nos.abort()", {}, "killed by SIG"),
        ("1 +", {}, "exit code 1"),
    ],
)
def test_a_limit_is_told(sandbox: Sandbox, source: str, change: dict[str, int], reason: str) -> None:
    assert sandbox.run(source, b"", replace(LIMITS, **change)).reason.startswith(reason)


def test_errors_name_the_programs_line(sandbox: Sandbox) -> None:
    errors = sandbox.run("x = 1\ny = x / 0", b"", LIMITS).errors
    assert 'File "<program>", line 2' in errors
    assert "framework" not in errors


VALUES = [
    *("(1, 2)", "[1, [2]]", "{1: 'a', (2, 3): None}", "{1, 2}", "frozenset({1})", "1.5", "float('inf')", "10 ** 5000"),
    *("'ü\\ud800'", "b'x'", "True", "None", "1 + 2j", "range(3)", "__import__('fractions').Fraction(1, 3)", "{}"),
    *("__import__('decimal').Decimal('0.1')", "__import__('collections').Counter('aa')", "[float('nan')]", "''"),
]


@pytest.mark.parametrize("value", VALUES)
def test_plain_values_cross_both_ways(sandbox: Sandbox, value: str) -> None:
    tests = {
        "prelude": f"import sys\nsys.set_int_max_str_digits(0)\nvalue = {value}",
        "source": "found = f(value)\nassert repr(found) in (repr(value), repr(dict(value)) if type(value).__name__ == "
        "'Counter' else '')\nassert f(x=value) is not None or value is None",
        "names": ["f"],
        "check": "",
    }
    assert sandbox.judge("def f(x): return x", tests, LIMITS).why == ""


EXCEPTIONS = """
try:
    f(0)
except ZeroDivisionError as error:
    assert 'zero' in str(error)
else:
    assert False
assert g(f(2)) == 6
try:
    g(None)
except Exception as error:
    assert type(error) is RuntimeError
"""
FUNCTIONS = """
class Own(Exception): pass
def f(n): return 6 // n
def g(n):
    if n is None: raise Own
    return n * 2
"""
SOLUTION = """
class Solution:
    def __init__(self): self.n = 0
    def square(self, n):
        self.n += n * n
        return self.n
"""
FAMILY = """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(3600)
import resource
print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)
try:
    while True:
        if os.fork() == 0: time.sleep(3600)
except OSError: pass
"""


def test_tests_see_exceptions_and_several_functions(sandbox: Sandbox) -> None:
    tests = {"prelude": "", "source": EXCEPTIONS, "names": ["f", "g"], "check": ""}
    assert sandbox.judge(FUNCTIONS, tests, LIMITS).why == ""


def test_a_method_of_a_solution_is_called(sandbox: Sandbox) -> None:
    cases = [{"args": [n], "expected": n * n} for n in (3, 4)]  # each on an object of its own
    assert sandbox.judge(SOLUTION, {"name": "Solution.square", "cases": cases}, LIMITS).passed


def test_values_that_cannot_be_carried_are_said(sandbox: Sandbox) -> None:
    tests = {"prelude": "", "source": "f(lambda: 1)", "names": ["f"], "check": ""}
    assert "function is no plain data" in sandbox.judge("def f(x): return x", tests, LIMITS).why


def test_programs_end_with_the_process_that_forks_them(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # killed like this it cannot remove its folder
    with Sandbox("limits", levels=(sandbox.level,)) as other:
        null = os.open(os.devnull, os.O_RDWR)
        script = os.memfd_create("script")
        os.write(script, b"import time\ntime.sleep(3600)")
        os.lseek(script, 0, os.SEEK_SET)
        pid = other._start("script", LIMITS, [null, null, null, script])
        assert children(other.pid) == [pid]
        os.kill(other.pid, signal.SIGKILL)
        for _ in range(100):
            if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the program lives on")


def test_the_sandbox_ends_with_the_process_that_asked() -> None:
    code = (
        "import time\nfrom framework.rewards.sandbox.client import *\ns = Sandbox('limits')\nprint(s.pid, flush=True)\n"
    )
    code += "s.run('import time; time.sleep(3600)', b'', LimitsConfig(wall_s=100))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        keeper = int(asker.stdout.readline())
        while not (programs := children(keeper)):
            time.sleep(0.02)
        asker.kill()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in (keeper, *programs)):
            return
        time.sleep(0.05)
    pytest.fail("it lives on")


def test_a_kernel_without_namespaces_gives_filters() -> None:
    code = "from framework.rewards.sandbox import kernel\nfrom framework.rewards.sandbox.client import *\n"
    code += "kernel.filter_calls(processes=True, signals=True)\n"  # as the profile of a container may do
    code += "import os\nos.memfd_create = lambda *a: __import__('tempfile').TemporaryFile().fileno()\n"
    code += "s = Sandbox('filters')\nprint(s.level, s.reasons)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("filters ('no namespaces: ")


def test_less_than_the_least_is_refused() -> None:
    with pytest.raises(UserError, match="least: got 'namespaces'; no sandbox of that strength here"):
        Sandbox("namespaces", levels=("limits",))
    with pytest.raises(UserError, match="nosuchpackage is not an installed package"):
        Sandbox("limits", packages=("nosuchpackage",))


def test_a_package_may_be_imported() -> None:
    for level in ("namespaces", "filters"):
        with Sandbox(level, packages=("numpy",), levels=(level,)) as found:  # type: ignore[arg-type]
            source = "import numpy\nimport numpy.polynomial\nprint(int(numpy.arange(4).sum()))\nimport torch"
            ended = found.run(source, b"", LIMITS)
            assert ended.output == b"6\n"
            assert ended.reason == "exit code 1"  # torch lies beside numpy, and cannot be read


def test_several_processes_share_the_memory_and_end_together() -> None:
    limits = replace(LIMITS, processes=4, memory_mb=512)
    with Sandbox("namespaces") as found:
        assert found.run(FAMILY, b"", limits).output == b"128\n"
        assert children(found.pid) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_namespaces_of_an_ordinary_user() -> None:
    def inside() -> None:
        level = confine.Namespaces(confine.Library(("/usr/lib",), "/usr/share", (), ()))
        pid = level.fork()
        if pid == 0:
            os.closerange(3, 4096)  # of all tests before
            level.confine(confine.Limits(1, 512, 1, 4, 1), 0)
            seen = os.getuid() == 4321 and os.getpid() == 1 and set(os.listdir("/")) == {"usr", "dev", "tmp"}
            try:
                open("/usr/x", "w").close()
            except OSError:
                os._exit(0 if seen else 1)
            os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0

    def ordinary() -> None:
        os.setgroups([])
        os.setresgid(4321, 4321, 4321)
        os.setresuid(4321, 4321, 4321)
        kernel._prctl(4, 1)  # an ordinary user's process is its own to describe
        inside()

    assert kernel.works(ordinary) == ""
