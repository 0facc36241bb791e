"""The table at a run's end and the gain's error, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from framework.observe.gains import gain
from framework.observe.outcome import outcome
from framework.types import EvalResult, EvalTask


def result(label: str, shares: list[float], **changes: object) -> EvalResult:
    """An evaluation of prompts p0, p1, … with these shares of right responses."""
    task = EvalTask("all", len(shares), 16, sum(shares) / len(shares), 0.021, 0.68, 0.9, 0.55, 10.0, 0.0)
    by_prompt = {f"p{place}": value for place, value in enumerate(shares)}
    return EvalResult(label, replace(task, **changes), (), right_share=by_prompt)  # type: ignore[arg-type]


def test_the_gain_is_paired_by_prompt() -> None:
    first, last = result("base", [0.0, 0.5, 0.9]), result("rl", [0.1, 0.7, 0.9])
    found = gain(first, last)
    assert found is not None
    assert (found.points, found.n_paired) == (pytest.approx(0.1), 3)  # differences 0.1, 0.2, 0
    assert found.error == pytest.approx(0.1 / 3**0.5)  # their standard deviation is 0.1


def test_the_gain_is_over_prompts_that_both_answered() -> None:
    found = gain(result("base", [0.0, 0.5]), result("rl", [0.1, 0.7, 0.0, 0.0]))
    assert found is not None
    assert (found.points, found.n_paired) == (pytest.approx(0.15), 2)


def test_without_shares_by_prompt_the_errors_add_up_as_of_independent_ones() -> None:
    first, last = (replace(result(label, [value]), right_share={}) for label, value in (("base", 0.25), ("rl", 0.75)))
    found = gain(first, last)
    assert found is not None
    assert (found.points, found.n_paired) == (0.5, 0)
    assert found.error == pytest.approx(0.021 * 2**0.5)
    assert outcome([first, last]).endswith("gain of rl over base in pass@1: +50.0 ± 3.0 points, not paired by prompt")


def test_a_row_for_each_checkpoint_and_the_gain_last() -> None:
    first, last = result("base", [0.0, 0.5, 0.9]), result("r1_zero", [0.1, 0.7, 0.9], failed_samples=1234)
    between = result("sft", [0.2, 0.2, 0.2])
    assert outcome([first, between, last]).splitlines() == [
        "checkpoint  prompts  pass@1 ± se  cons@16  format  failed",
        "base              3  46.7% ± 2.1    68.0%   55.0%       0",
        "sft               3  20.0% ± 2.1    68.0%   55.0%       0",
        "r1_zero           3  56.7% ± 2.1    68.0%   55.0%   1,234",
        "gain of r1_zero over base in pass@1: +10.0 ± 5.8 points, paired over 3 prompts",
    ]
    assert len(outcome([first]).splitlines()) == 2
    assert "68.0% (k = 4)" in outcome([first, result("quick", [0.5], k=4)])


def test_nothing_measured_is_a_dash() -> None:
    unjudged = result("base", [0.0], pass_at_1=None, pass_at_1_se=None, cons_at_k=None, format_rate=None)
    unjudged = replace(unjudged, right_share={})
    table = outcome([unjudged, result("rl", [0.5])])
    assert table.splitlines()[1].split() == ["base", "1", "–", "–", "–", "0"]
    assert table.endswith("pass@1: –, one of them has no prompt with a verdict")


def test_levels_and_subjects_stand_under_their_evaluation() -> None:
    whole = result("math_500", [0.0, 1.0])
    parts = tuple(replace(whole.overall, task=f"level {level}", n_prompts=level) for level in range(1, 15))
    lines = outcome([replace(whole, groups=parts)]).splitlines()
    assert [line.split()[:3] for line in lines[2:4]] == [["level", "1", "1"], ["level", "2", "2"]]
    assert lines[-1].split()[:6] == ["and", "2", "more,", "in", "the", "report"]
    assert len(lines) == 2 + 12 + 1
