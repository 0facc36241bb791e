"""`make mutants`: change the code that decides, one place at a time, and list the changes that no test notices.

    python -m tests.mutants [--only TEXT …] [--tests FILE …] [--again FILE] [--out FILE] [--share I/N] [--tree DIR]

A new pytest for every change would spend its time on imports. So everything is imported and collected once; one fork
runs all tests and writes down which functions each of them reaches; then every change gets a fork that runs the tests
that reach its function, the shortest first, until one fails. A change is noticed if a test fails, or takes five times
its usual time. mutmut makes the changes: all of a file are compiled side by side, and MUTANT_UNDER_TEST picks one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["mutmut"]
EXAMPLES = 15  # of a hypothesis test
SERVED = [f"framework.rewards.{name}" for name in ("base", "blame", "child", "questions")]
SLOW_S = 20.0  # a test that takes longer is left out
FLOOR_S = 10.0


def main() -> None:
    """Build the changed tree and start the tests in it."""
    parser = argparse.ArgumentParser(prog="tests.mutants")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of changes' names")
    parser.add_argument("--tests", nargs="*", help="files or folders of tests, instead of those in pyproject.toml")
    parser.add_argument("--again", type=Path, help="a results file: try those that were left, and nothing else")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "mutants" / "results.jsonl")
    parser.add_argument("--share", default="0/1", help="which of how many processes this is")
    parser.add_argument("--tree", type=Path, default=REPOSITORY / "mutants" / "tree")
    options = parser.parse_args()
    names = build(options.tree, options.only)
    if options.again:
        rows = map(json.loads, options.again.read_text().splitlines())
        left = {row["name"] for row in rows if row["result"] in ("left", "no test")}
        names = [name for name in names if name in left]
    share, shares = map(int, options.share.split("/"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(options.tree), *filter(None, sys.path)])}
    tests = options.tests or SETTINGS["pytest_add_cli_args_test_selection"]
    work = {
        "names": names[share::shares],
        "tests": tests,
        "out": str(options.out.absolute()),
        "tree": str(options.tree),
    }
    environment |= {"MUTANTS": json.dumps(work), "OMP_NUM_THREADS": "1", "MUTANT_UNDER_TEST": ""}
    os.chdir(options.tree)
    os.execve(sys.executable, [sys.executable, "-c", "from tests import mutants; mutants.run()"], environment)


def build(tree: Path, only: Sequence[str] = ("",)) -> list[str]:
    """Copy the repository to `tree`, every file in question with all its changes; return the changes' names."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    for part in ("framework", "tests", "pyproject.toml", *SETTINGS["also_copy"]):
        source, target = REPOSITORY / part, tree / part
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    names: list[str] = []
    for pattern in SETTINGS["only_mutate"]:
        for path in sorted(REPOSITORY.glob(pattern)):
            place = path.relative_to(REPOSITORY)
            module = ".".join(place.with_suffix("").parts)
            if not any(part in module or module in part for part in only):
                continue
            mutated = mutate_file_contents(str(place), path.read_text())
            if not mutated.mutant_names:  # a package's own file, which interpreters without packages read as well
                continue
            (tree / place).write_text(mutated.code)
            names += [f"{module}.{name}" for name in mutated.mutant_names]
    return [name for name in names if any(part in name for part in only)]


def run() -> None:
    """Collect the tests of the changed tree once, then try every change in a fork."""
    import pytest

    work = json.loads(os.environ.pop("MUTANTS"))
    import torch

    from framework.rewards import process

    torch.set_num_threads(1)
    process.ENVIRONMENT += ("MUTANT_UNDER_TEST",)  # type: ignore[assignment]  # changes act in reward processes too
    base = f"{work['tree']}/tmp{os.getpid()}"
    arguments = ["-s", "-o", "addopts=", "-o", "timeout=0", "-p", "no:cacheprovider", "--basetemp"]
    pytest.main([*arguments, base, *work["tests"]], plugins=[Mutants(work)])
    shutil.rmtree(base, ignore_errors=True)
    print("\n".join(summary(Path(work["out"]))))


def summary(results: Path) -> list[str]:
    """Return a line for each module of a results file, changes and how many were noticed; then those that were not."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    modules: defaultdict[str, list[bool]] = defaultdict(list)
    for row in rows:
        modules[row["name"].rpartition(".")[0]].append(row["result"] == "noticed")
    lines = [f"{module}: {sum(found)} of {len(found)} noticed" for module, found in sorted(modules.items())]
    return lines + [f"{row['result']}: {row['name']}" for row in rows if row["result"] != "noticed"]


class Mutants:
    """Takes the place of pytest's loop over the collected tests."""

    def __init__(self, work: dict[str, Any]) -> None:
        self._names, self._out = work["names"], Path(work["out"])

    def pytest_runtestloop(self, session: Any) -> bool:
        """Map tests to functions, then try each change; writes a JSON line for each."""
        if session.testsfailed:
            sys.exit("tests of the changed tree cannot be collected")
        items = [item for item in session.items if not item.get_closest_marker("gpu")]
        for item in items:
            _few_examples(item)
        survey = self._out.with_suffix(".survey")
        known = json.loads(survey.read_text()) if survey.exists() else _in_fork(lambda: _survey(items))
        assert isinstance(known, dict), known
        survey.write_text(json.dumps(known))
        for name in known.pop("")["modules"]:  # what tests import as they run is imported once
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        usable: list[Any] = []
        for item in items:
            if known[item.nodeid]["passed"] and known[item.nodeid]["s"] < SLOW_S:
                usable.append(item)
            else:
                print(f"left out, it fails or takes long by itself: {item.nodeid}", flush=True)
        usable.sort(key=lambda item: known[item.nodeid]["s"])
        reaching: defaultdict[str, list[Any]] = defaultdict(list)
        for item in usable:
            for function in known[item.nodeid]["functions"]:
                reaching[function].append(item)
        loader = "framework.rewards.process.xǁRewardLoaderǁ__init__"
        served = {item.fspath for item in reaching[loader]}
        done: set[str] = set()
        if self._out.exists():
            done = {json.loads(line)["name"] for line in self._out.read_text().splitlines()}
        self._out.parent.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(self._names):
            if name in done:
                continue
            module, _, mangled = name.rpartition(".")
            tests = list(reaching[f"{module}.{mangled.partition('__mutmut_')[0]}"])
            if module in SERVED:  # runs in another process, where nobody saw it
                tests += [item for item in usable if item.fspath in served and item not in tests]
            started = time.monotonic()
            limits = [FLOOR_S + 5 * known[item.nodeid]["s"] for item in tests]
            found = _in_fork(functools.partial(_try, name, tests, limits), 8 * sum(limits)) if tests else ""
            row = {"name": name, "result": _verdict(found, bool(tests)), "by": found}
            row["s"] = round(time.monotonic() - started, 2)
            with self._out.open("a") as file:
                print(json.dumps(row), file=file)
            print(number, len(self._names), row["result"], name, row["s"], flush=True)
        return True


def _verdict(found: object, tests: bool) -> str:
    if not tests:
        return "no test"
    return "left" if found == "" else "noticed"


def _few_examples(item: Any) -> None:
    import hypothesis

    test = getattr(item, "obj", None)
    test = getattr(test, "__func__", test)
    if (chosen := getattr(test, "_hypothesis_internal_use_settings", None)) is not None:
        few = hypothesis.settings(
            chosen, max_examples=min(EXAMPLES, chosen.max_examples), derandomize=True, database=None, deadline=None
        )
        test._hypothesis_internal_use_settings = few  # type: ignore[union-attr]


def _survey(items: list[Any]) -> dict[str, dict[str, Any]]:
    from mutmut.state import state

    os.environ["MUTANT_UNDER_TEST"] = "stats"
    known: dict[str, dict[str, Any]] = {}
    before = set(sys.modules)
    for place, item in enumerate(items):
        state()._stats.clear()
        started = _cpu_s()
        passed = _passes(item, items[place + 1] if place + 1 < len(items) else None)
        known[item.nodeid] = {
            "passed": passed,
            "s": _cpu_s() - started,
            "functions": sorted(state()._stats),
        }
    known[""] = {"modules": sorted(name for name in set(sys.modules) - before if not name.startswith(("tests", "__")))}
    return known


def _cpu_s() -> float:
    """Processor time of this process and of its children that have ended: a busy machine changes it little."""
    return sum(os.times()[:4])


def _try(name: str, tests: list[Any], limits: list[float]) -> str:
    os.environ["MUTANT_UNDER_TEST"] = name
    for place, item in enumerate(tests):
        most = math.ceil(time.process_time() + limits[place])  # of processor time: a busy machine is no reason
        resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
        if not _passes(item, tests[place + 1] if place + 1 < len(tests) else None):
            return str(item.nodeid)
    return ""


def _passes(item: Any, following: Any) -> bool:
    from _pytest.runner import runtestprotocol

    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _in_fork(action: Callable[[], Any], limit_s: float = 3600.0) -> Any:
    """Return what an action returns in a fork of this process; "timeout" or "died" as a string otherwise."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(receive)
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        try:
            answer = json.dumps(action()).encode()
            while answer:
                answer = answer[os.write(send, answer) :]
        finally:
            os._exit(0)
    os.close(send)
    os.set_blocking(receive, False)
    answer, deadline = b"", time.monotonic() + limit_s
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                block = os.read(receive, 1 << 16)
                if not block:
                    break
                answer += block
                continue
            if time.monotonic() > deadline:
                return "timeout"
            time.sleep(0.005)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(receive)
    return json.loads(answer) if answer else "died"


if __name__ == "__main__":
    main()
