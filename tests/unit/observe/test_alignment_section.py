"""Rewards against KL in the report: a run of a fine-tuned model, PPO and DPO, its numbers written by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from framework.observe.alignment_section import alignment_rows, alignment_section, kl_of_responses
from framework.observe.metrics import StageHistory
from framework.observe.outcome import outcome
from framework.types import EvalResult, EvalTask, Measured
from tests.unit.observe.test_report import outline


def result(label: str, kl: float | None, proxy: float, rule: float, best_of: Any = None) -> EvalResult:
    scores = {"helpful": Measured(proxy, 0.1, 4), "rule": Measured(rule, 0.05, 4)}
    if kl is not None:
        scores["kl"] = Measured(kl, 0.2, 4)

    def task(name: str, count: int, right: float) -> EvalTask:
        return EvalTask(name, count, 2, right, 0.1, right, right, None, 3.0, 0.0, n_judged=count)

    tasks = [task("general_writing", 3, 0.2), task("general_greeting", 1, 1.0), task("general_decline", 2, rule)]
    overall = EvalTask("all", 6, 2, rule, 0.05, rule, rule, None, 3.0, 0.0, scores=scores)
    return EvalResult(label, overall, tuple(tasks), best_of=best_of or {})


BEST = {n: {"helpful": Measured(float(n), 0.1, 4), "rule": Measured(0.5, 0.1, 4)} for n in ("1", "2", "4")}
RESULTS = [result("sft", None, 0.0, 0.4, BEST), result("rlhf", 3.0, 2.0, 0.3), result("rlhf_dpo", 1.0, 1.0, 0.6)]


def test_the_rows_are_the_model_its_best_of_n_and_the_policies() -> None:
    rows = alignment_rows(RESULTS)
    assert [row.label for row in rows] == ["sft", "sft, best of 2", "sft, best of 4", "rlhf", "rlhf_dpo"]
    assert [row.kl.mean for row in rows] == [0.0, math.log(2) - 0.5, math.log(4) - 0.75, 3.0, 1.0]
    assert rows[0].virtues["helpful"] == pytest.approx((0.4, math.hypot(0.3, 0.1) / 4))  # 3 prompts and 1
    assert rows[0].virtues["harmless"] == (0.4, pytest.approx(0.1))
    assert "honest" not in rows[0].virtues  # no such request was asked
    assert all("kl" not in row.rewards for row in rows)
    assert alignment_rows(RESULTS[:1]) == []


def test_the_report_draws_both_rewards_with_what_was_recorded_in_training() -> None:
    steps = range(2, 50, 2)
    series = {"kl/reference": {s: s / 100 for s in steps}, "response/length_mean": dict.fromkeys(steps, 10.0)}
    stage = StageHistory("rlhf", {**series, "reward/helpful": {s: float(s) for s in steps}})
    assert kl_of_responses(stage)[4] == pytest.approx(0.4)
    assert kl_of_responses(StageHistory("rlhf", {**series, "kl/sequence": {4: 7.0}})) == {4: 7.0}
    run = cast(Any, SimpleNamespace(evaluations=RESULTS, history=SimpleNamespace(stages={"rlhf": stage})))
    page = alignment_section(run)
    shown = outline(page)
    assert shown.headings == ["Rewards against KL"]
    row = shown.cells[shown.cells.index("rlhf") :][:6]
    assert row == ["rlhf", "3 ±0.2", "2 ±0.1", "0.3 ±0.05", "40.0% ± 7.9", "30.0% ± 10.0"]
    assert page.count("rlhf in training") >= 1
    for title in ("Reward helpful against KL", "Reward rule against KL", "best of n", "rlhf_dpo"):
        assert title in page
    assert alignment_section(cast(Any, SimpleNamespace(evaluations=RESULTS[:1]))) == ""


def test_rewards_and_nats_are_no_percentages_on_the_terminal() -> None:
    heads, sft, rlhf, *_ = outcome(RESULTS).splitlines()
    assert "kl ± se" in heads
    assert "0.00 ± 0.10" in sft
    assert "40.0% ± 5.0" in sft
    assert "3.00 ± 0.20" in rlhf
    assert "–" in sft
