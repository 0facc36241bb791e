"""How `make mutants` tells what a change did to the tests that reach it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests import mutants


def test_a_fork_answers_dies_or_takes_too_long() -> None:
    assert mutants._in_fork(lambda: {"a": [1]}) == {"a": [1]}
    assert mutants._in_fork(lambda: "") == ""
    assert mutants._in_fork(lambda: os._exit(3)) == "died"
    assert mutants._in_fork(lambda: time.sleep(60), limit_s=0.2) == "timeout"


@pytest.mark.parametrize(
    ("found", "tests", "result"),
    [("", True, "left"), ("", False, "no test"), ("test_a", True, "noticed"), ("timeout", True, "noticed")],
)
def test_what_is_said_of_a_change(found: str, tests: bool, result: str) -> None:
    assert mutants._verdict(found, tests) == result


def test_the_summary_counts_by_module_and_names_what_was_left(tmp_path: Path) -> None:
    rows = [("a.b.x_f__mutmut_1", "noticed"), ("a.b.x_f__mutmut_2", "left"), ("a.c.x_g__mutmut_1", "no test")]
    lines = [json.dumps({"name": name, "result": result}) for name, result in rows]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    assert mutants.summary(tmp_path / "results.jsonl") == [
        "a.b: 1 of 2 noticed",
        "a.c: 0 of 1 noticed",
        "left: a.b.x_f__mutmut_2",
        "no test: a.c.x_g__mutmut_1",
    ]
