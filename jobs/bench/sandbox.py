"""Programs that the sandbox of the code reward runs a second on one core, by level, with a bare interpreter beside."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from framework.errors import UserError
from framework.rewards.sandbox.client import LimitsConfig, Sandbox
from framework.rewards.sandbox.confine import LEVELS
from jobs.bench._common import report

LIMITS = LimitsConfig(wall_s=60.0)
SCRIPT = "n = int(input())\nprint(sum(range(n)))"
FUNCTION = "def total(n):\n    return sum(range(n))"
TESTS = {
    "prelude": "",
    "source": "def check(candidate):\n" + "".join(f"    assert candidate({n}) == {sum(range(n))}\n" for n in range(8)),
    "names": ["total"],
    "check": "check",
}


def main(argv: list[str]) -> int:
    """Print and store programs a second."""
    parser = argparse.ArgumentParser("framework bench sandbox", description=__doc__)
    parser.add_argument("--programs", type=int, default=200)
    options = parser.parse_args(argv)
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # of this process and all that it starts
    rows: list[dict[str, Any]] = []
    for level in LEVELS:
        try:
            with Sandbox("limits", levels=(level,)) as sandbox:
                script = _rate(lambda: sandbox.run(SCRIPT, b"1000", LIMITS).reason == "", options.programs)
                function = _rate(lambda: sandbox.judge(FUNCTION, TESTS, LIMITS).passed, options.programs)
        except UserError as error:
            print(f"{level}: not here: {error}", file=sys.stderr)
            continue
        rows.append({"sandbox": level, "scripts/s": script, "functions with 8 asserts/s": function})
    bare = _rate(_bare, max(10, options.programs // 4))
    rows.append({"sandbox": "none: python -I -S -c", "scripts/s": bare, "functions with 8 asserts/s": ""})
    report("sandbox", rows, {"programs of each kind": options.programs, "cores used": 1})
    return 0


def _rate(run: Callable[[], bool], programs: int) -> float:
    """Runs a second; the first warms up."""
    assert run()
    began = time.perf_counter()
    for _ in range(programs):
        assert run()
    return programs / (time.perf_counter() - began)


def _bare() -> bool:
    done = subprocess.run([sys.executable, "-I", "-S", "-c", SCRIPT], input=b"1000", capture_output=True, check=True)
    return done.stdout == b"499500\n"
