"""The stage table of a whole recipe, the published effects, the reward models, several seeds: by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framework import cli
from framework.observe.collect import collect
from framework.observe.effects import EFFECTS, effects
from framework.observe.metrics import Tracker
from framework.observe.outcome import outcome
from framework.observe.recipe_section import held_out_accuracies, reward_hacking
from framework.observe.report import write_report
from framework.observe.stage_table import over_seeds
from framework.observe.verdict import verdict
from tests.unit.observe.synthetic import RECIPE, recipe_evaluation, write_recipe, write_run
from tests.unit.observe.test_report import outline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("runs") / "r1")


def test_every_checkpoint_has_a_row_of_domains_rewards_and_errors(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    shown = outline(page)
    assert shown.headings[0] == "Checkpoints"
    heads = page[page.index("<h2>Checkpoints") :].partition("</thead>")[0]
    order = ["pass@1", "math", "programs", "cons@16", "format", "language", "helpful"]
    assert [heads.index(f"<th>{head}</th>") for head in order] == sorted(heads.index(f"<th>{h}</th>") for h in order)
    assert "<th>general</th>" not in heads  # nothing is right or wrong there
    row = shown.cells[shown.cells.index("r1") :][:8]
    assert row == [
        "r1", "78.0% ± 2.0", "77.0% ± 3.0", "25.0% ± 5.0", "86.0% ± 2.5", "90.0% ± 1.0", "99.0% ± 1.0", "90.0% ± 3.0",
    ]  # fmt: skip
    assert "gain in pass@1" not in page.partition("<h2>")[0]  # of the last row over the first says nothing here


def test_what_shows_what_does_not_and_what_is_the_opposite(run: Path) -> None:
    found = {one.effect.title: (one.shows, pytest.approx(one.points)) for one in effects(collect(run).evaluations)}
    assert set(found) == {effect.title for effect in EFFECTS}
    assert found["RL alone teaches reasoning"] == ("yes", 0.5)
    assert found["a cold start costs some reasoning"] == ("yes", -0.2)  # a published loss
    assert found["and costs no reasoning"] == ("no", 0.02)  # of an error of 2.8
    assert found["the language reward cures mixing"] == ("yes", 0.29)
    assert found["R1-Zero's majority is better than one answer"] == ("yes", 0.08)
    by_label = {result.label: result for result in collect(run).evaluations}
    better = replace(by_label["r1_zero"], label="qwen_zero")  # 80% against the distilled student's 70%
    (other,) = effects([better, by_label["distill_qwen"]])
    assert (other.effect.before, other.shows) == ("qwen_zero", "opposite")


def test_the_verdict_and_the_terminal_say_so_too(run: Path) -> None:
    evaluations = collect(run).evaluations
    lines = outcome(evaluations).splitlines()
    assert lines[0].split()[:6] == ["checkpoint", "prompts", "pass@1", "±", "se", "math"]
    assert len(lines) == 1 + len(RECIPE) + len(EFFECTS)
    line = next(line for line in lines if line.startswith("RL alone"))
    assert line.endswith("+50.0 ± 2.8 points, shows; published: AIME 15.6 → 77.9 (v2, figure 1)")
    assert {finding.text for finding in verdict(collect(run))} >= {line}


def test_of_r1_zero_alone_the_gain_is_told_as_before(tmp_path: Path) -> None:
    found = collect(write_run(tmp_path / "run", steps=3)).evaluations
    assert effects(found) == []
    assert "gain of r1_zero over base" in outcome(found)


def test_a_reward_model_s_accuracy_on_held_out_pairs(run: Path) -> None:
    ((name, accuracy, error, pairs),) = held_out_accuracies(collect(run))
    assert (name, accuracy, error, pairs) == ("helpful_rm", 0.9, pytest.approx(0.03), 100)
    cells = outline(write_report(run).read_text(encoding="utf-8")).cells
    assert cells[cells.index("helpful_rm") :][:3] == ["helpful_rm", "90.0% ± 3.0", "100"]


def test_reward_hacking_is_a_rising_reward_and_sinking_helpfulness(run: Path, tmp_path: Path) -> None:
    assert reward_hacking(collect(run)) == ""  # r1 recorded no such reward
    told = {}
    for name, helpful in (("better", 0.9), ("worse", 0.3)):
        made = write_recipe(tmp_path / name)
        with Tracker(made, "r1") as tracker:
            for step, reward in ((10, 0.5), (20, 0.8)):
                tracker.log(step, {"reward/helpful": reward})
        recipe_evaluation(made, "r1", 0.78, 0.99, helpful, "again")
        told[name] = reward_hacking(collect(made))
    assert (
        "helpful: the reward went from 0.50 to 0.80 in training, held-out requests from 60.0% ± 3.0 to" in told["worse"]
    )
    assert told["worse"].endswith("30.0% ± 3.0, which is reward hacking")
    assert told["better"].endswith("90.0% ± 3.0, no sign of reward hacking")


def test_three_seeds_are_one_table_of_means(run: Path, tmp_path: Path) -> None:
    others = [write_recipe(tmp_path / str(place), shift) for place, shift in enumerate((0.03, 0.06))]
    assert cli.main(["report", *map(str, (run, *others))]) == 0
    page = (run / "comparison.html").read_text(encoding="utf-8")
    cells = outline(page).cells
    assert cells[cells.index("dev2") :][:2] == ["dev2", "78.0% ± 1.7"]  # 75, 78, 81: a spread of 3 over the root of 3
    assert "Means over 3 runs" in page


def test_the_error_over_seeds_is_of_their_spread() -> None:
    assert over_seeds([(0.5, 0.1), (0.7, 0.1)]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert over_seeds([(0.5, 0.1), (None, None)]) == (0.5, 0.1)
    assert over_seeds([(None, None)]) == (None, None)
