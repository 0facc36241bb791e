"""Hostile programs, at every level of the sandbox that this machine allows: none is right, none outlives its limit."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.rewards.code import same_output
from framework.rewards.sandbox.client import LimitsConfig, Sandbox
from tests.unit.rewards.sandbox.hostile import FUNCTIONS, SCRIPTS

LIMITS = LimitsConfig(cpu_s=1, wall_s=0.3, memory_mb=256, files_mb=8, output_kb=256, threads=16)
CASES = {"name": "f", "cases": [{"args": [n], "expected": n * n} for n in (3, 4)]}
ASSERTS = {
    "prelude": "",
    "source": "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(4) == 16",
    "names": ["f"],
    "check": "check",
}


# What a file that others may read has, limits alone do not keep.
READABLE = ("reading the answer from disk", "reading the answer through a link", "reading below the root")


@pytest.fixture(scope="module", params=["namespaces", "filters", "limits"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if request.param == "limits" and os.geteuid() != 0:
        pytest.skip("as this user: a program could do what its user may")
    try:
        found = Sandbox("limits", levels=(request.param,))
    except UserError as error:
        pytest.skip(f"this kernel: {error}")
    with found:
        yield found
        assert found._process.poll() is None  # the same process survived every program
        assert children(found.pid) == []


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, object]]:
    """Things that a program is after."""
    folder = tmp_path_factory.mktemp("victim")
    (folder / "inner").mkdir()
    secret = folder / "inner" / "secret.txt"
    secret.write_text("42")
    folder.chmod(0o777)
    with socket.socket() as server, socket.socket(socket.AF_UNIX) as unix, secret.open() as file:
        server.bind(("127.0.0.1", 0))
        server.listen()
        place = f"{folder}/s"
        unix.bind(place)
        unix.listen()
        yield {
            "secret": str(secret),
            "victim": str(folder),
            "pid": os.getpid(),
            "fd": file.fileno(),
            "port": server.getsockname()[1],
            "unix": place,
        }


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_hostile_script_is_right_or_outlives_its_limit(
    sandbox: Sandbox, bait: Mapping[str, object], name: str
) -> None:
    if sandbox.level == "limits" and name in READABLE:
        pytest.skip("limits alone prevent no reading")
    began = time.monotonic()
    ended = sandbox.run(SCRIPTS[name].format(**bait), b"", LIMITS)
    assert time.monotonic() - began < LIMITS.wall_s + 10  # a busy machine needs a while to take a thousand pages back
    assert ended.reason or not same_output("42", ended.output.decode(errors="replace")), ended
    assert len(ended.output) <= (LIMITS.output_kb << 10) + 1
    assert ended.peak_mb <= LIMITS.memory_mb + 64
    assert children(sandbox.pid) == []
    assert Path(str(bait["secret"])).read_text() == "42"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_hostile_function_is_right(sandbox: Sandbox, name: str) -> None:
    began = time.monotonic()
    verdict = sandbox.judge(FUNCTIONS[name], CASES if sandbox.level == "filters" else ASSERTS, LIMITS)
    assert time.monotonic() - began < LIMITS.wall_s + 10
    assert not verdict.passed
    assert verdict.why
    assert children(sandbox.pid) == []


def test_a_right_program_is_right_after_all_of_them(sandbox: Sandbox) -> None:
    patient = replace(LIMITS, wall_s=20.0)
    assert sandbox.run("print(int(input()) * 2)", b"21\n", patient).output == b"42\n"
    for tests in (CASES, ASSERTS):
        assert sandbox.judge("def f(n): return n * n", tests, patient).passed


def children(pid: int) -> list[int]:
    """Processes below `pid`, zombies too."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grand for child in found for grand in parents if parents[grand] == child]
