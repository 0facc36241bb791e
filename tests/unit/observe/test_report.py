"""The report is whole, self-contained, and honest about what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from framework import cli
from framework.artifacts import Checkpoint, EvalReport
from framework.errors import UserError
from framework.observe.collect import collect, read_evaluation
from framework.observe.curves import stage_charts
from framework.observe.metrics import METRICS, Tracker, read_history
from framework.observe.outcome import outcome
from framework.observe.report import write_report
from framework.observe.verdict import verdict
from framework.types import EvalResult, EvalTask
from tests.unit.observe.synthetic import evaluate, write_artifact, write_run

VOID = {"meta", "br", "link", "input", "img", "hr"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects headings, texts and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self.headings.append(data.strip())
        if "td" in self.open:
            self.cells[-1] += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    return write_run(tmp_path_factory.mktemp("runs") / "r1 & zero", steps=30)


def test_a_finished_run_shows_everything(finished: Path) -> None:
    path = write_report(finished)
    page = path.read_text(encoding="utf-8")
    shown = outline(page)
    assert path == finished / "report.html"
    assert "r1 &amp; zero" in page
    for heading in ("Evaluation", "grpo", "pretrain", "Time and machine", "Artifacts", "Configuration"):
        assert heading in shown.headings
    row = shown.cells[: shown.cells.index("basic_arithmetic")]
    assert row[:4] == ["all tasks", "192", "31.0% ±3.3", "74.0% ±3.2"]
    assert row[-1] == "+43.0"
    titles = re.findall(r"<figcaption>(.*?) <span", page)
    for title in (
        "Loss",
        "Reward",
        "Response length",
        "KL divergence",
        "Clipped tokens",
        "Time by phase",
        "MoE layer 2",
    ):
        assert title in titles
    for artifact in collect(finished).artifacts:
        assert artifact.manifest.content_hash in page


def test_the_page_needs_no_network_and_runs_no_foreign_script(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    assert all(address.startswith("data:image/png;base64,") for address in outline(page).addresses)
    assert not re.search(r"@import|url\(|fetch\(|https?://(?!www\.w3\.org/2000/svg)", page)
    assert page.count("<script") == 1  # the samples' own <script> is escaped
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_verdict_comes_first_with_its_numbers(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    told = re.findall(r'<li class="(good|bad|plain)">(.*?)</li>', page)
    assert told[0] == (
        "good",
        "r1_zero answers 74.0% of 192 held-out prompts right, base 31.0%: better by 43.0 points, ± 9.2.",
    )
    assert ("good", "grpo: mean reward went from") in [(tone, text[:27]) for tone, text in told]
    assert ("bad", "grpo: values that are not finite in train/grad_norm.") in told
    assert page.index('class="verdict"') < page.index('class="tiles"')
    stopped = [finding.text for finding in verdict(collect(write_run(tmp_path / "run", steps=20, finished=False)))]
    assert "grpo is unfinished at step 20." in stopped


def test_charts_stand_in_groups_and_say_what_to_look_for(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    for group in ("What is learned", "How stable it is", "How fast it is", "What is sampled"):
        assert f"<h3>{group}</h3>" in page
    assert "Look for: phases overlap: the step takes less than their sum." in page
    assert "minmax(min(440px, 100%), 1fr)" in page  # no wider than a phone


def test_answers_of_all_checkpoints_stand_beside_the_reference(finished: Path) -> None:
    cells = outline(write_report(finished).read_text(encoding="utf-8")).cells
    at = cells.index("What is 0 + 1?")
    assert cells[at + 1] == "ref 1"
    assert cells[at + 2].startswith("base says <b>1</b>")
    assert cells[at + 3].startswith("r1_zero says <b>1</b>")


def test_runs_are_compared(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "other", steps=20)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "seed": 7}))
    assert cli.main(["report", str(finished), str(other)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == finished / "comparison.html"
    page = path.read_text(encoding="utf-8")
    shown = outline(page)
    assert shown.cells[shown.cells.index("seed") :][:3] == ["seed", "0", "7"]
    rewards = [figure for figure in page.split("<figure>") if "Reward: reward/mean" in figure]
    assert len(rewards) == 1
    assert "&quot;name&quot;:&quot;r1 &amp; zero&quot;" in rewards[0]
    assert "&quot;name&quot;:&quot;other&quot;" in rewards[0]
    assert cli.main(["report", str(finished), str(tmp_path / "none")]) == 2


def test_versions_and_commit_are_shown(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    for name in ("torch", "ray", "transformers", "commit"):
        assert f"<dt>{name}</dt>" in page


def test_every_recorded_metric_is_drawn(finished: Path) -> None:
    for stage in read_history(finished).stages.values():
        stage.series["something/new"] = {1: 1.0}
        drawn = "".join(stage_charts(stage).curves)
        for name in stage.series:
            assert f"&quot;name&quot;:&quot;{name}&quot;" in drawn, name


def test_of_many_layers_evenly_spaced_ones_are_drawn(tmp_path: Path) -> None:
    with Tracker(tmp_path, "grpo") as tracker:
        for step in range(3):
            tracker.expert_load(step, np.ones((58, 4)))
    (drawn,) = stage_charts(read_history(tmp_path).stages["grpo"]).curves
    assert re.findall(r"&quot;name&quot;:&quot;experts/layer_(\d+)&quot;", drawn) == [
        "0", "8", "16", "24", "33", "41", "49", "57"
    ]  # fmt: skip


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=5, finished=False)
    (run / "artifacts" / ".building-grpo-0123456789ab" / "out").mkdir(parents=True)
    page = write_report(run).read_text(encoding="utf-8")
    shown = outline(page)
    assert "Stage grpo is unfinished: it has reached step 5." in page
    assert "r1_zero" not in "".join(shown.cells)
    assert "31.0% ±3.3" in shown.cells


def test_a_run_that_has_only_started(tmp_path: Path) -> None:
    Tracker(tmp_path, "collect")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    outline(page)
    for note in (
        "No evaluation has finished yet.",
        "Stage collect is unfinished: it has reached its start.",
        "config.json",
    ):
        assert note in page


def test_what_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    (run / "artifacts" / "evaluate_base-0123456789ab" / "out" / "report.json").write_text('{"label": "base"}')
    (run / "artifacts" / "grpo-0123456789ab" / "out" / "manifest.json").write_text("{")
    (run / "config.json").write_text("{")
    with (run / METRICS).open("a") as handle:
        handle.write("{torn")
    page = write_report(run).read_text(encoding="utf-8")
    for note in (
        "An evaluation is left out",
        "An artifact is left out",
        "config.json is not JSON",
        "1 half-written or damaged line",
    ):
        assert note in page


@pytest.mark.parametrize(
    "line",
    [
        '{"stage": "grpo", "time": 5, "metrics": {"reward/mean": 1}}',
        '{"stage": "grpo", "time": 5, "step": "x", "metrics": {"reward/mean": 1}}',
        '{"stage": "grpo", "time": 5, "step": 1, "metrics": {"reward/mean": "?"}}',
        '{"stage": "grpo", "time": "then", "step": 1}',
        '{"stage": ["grpo"], "time": 5, "step": 1}',
        '{"stage": "grpo", "time": 5, "step": 1, "metrics": 3}',
    ],
)
def test_a_line_that_is_not_as_it_was_written_costs_no_report(tmp_path: Path, line: str) -> None:
    run = write_run(tmp_path / "run", steps=3)
    with (run / METRICS).open("a") as handle:
        handle.write(line + "\n")
    assert "1 half-written or damaged line" in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("line", ["{", "[]", '{"prompt_id": "a", "responses": ["b"]}', '{"responses": 3}'])
def test_damaged_answers_of_an_evaluation_cost_no_report(tmp_path: Path, line: str) -> None:
    run = write_run(tmp_path / "run", steps=3)
    file = run / "artifacts" / "evaluate_base-0123456789ab" / "out" / "samples.jsonl"
    file.write_text(line + "\n")
    assert "The answers of base are left out" in write_report(run).read_text(encoding="utf-8")


def test_a_stage_with_finished_outputs_is_finished(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3, finished=False)
    assert collect(run).history.stages["grpo"].state == "unfinished"
    write_artifact(run, "grpo", Checkpoint, {"config.json": "{}", "tokenizer.json": "{}"}, {})
    assert collect(run).history.stages["grpo"].state == "finished"
    Tracker(run, "grpo")  # run again, for changed code
    os.utime(run / "artifacts" / "grpo-0123456789ab" / "out" / "manifest.json", (1, 1))
    assert collect(run).history.stages["grpo"].state == "unfinished"


def test_the_newest_of_two_evaluations_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3, finished=False)
    (run / "artifacts" / "evaluate_base-0123456789ab").rename(run / "artifacts" / "evaluate_base-ffff")
    evaluate(run, "base", 0.4, {})
    found = collect(run)
    assert [result.overall.pass_at_1 for result in found.evaluations] == [0.4]
    assert any("more than one evaluation of base" in note for note in found.notes)


def test_checkpoints_evaluated_on_different_tasks_share_a_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    task = EvalTask("new_task", 8, 4, 0.5, 0.1, 0.5, 0.5, 1.0, 10.0, 0.0)
    result = json.dumps(asdict(EvalResult("other", task, (task,))))
    inputs = dict(collect(run).artifacts[-1].manifest.inputs)
    write_artifact(run, "evaluate_other", EvalReport, {"report.json": result, "samples.jsonl": ""}, inputs)
    cells = outline(write_report(run).read_text(encoding="utf-8")).cells
    assert cells[cells.index("new_task") + 2 :][:3] == ["–", "–", "50.0% ±10.0"]


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    task = EvalTask("all", 8, 4, 0.5, 0.1, 0.5, 0.5, 1.0, 10.0, 0.0)
    result = EvalResult("base", task, (task,), {"temperature": 1.0})
    (tmp_path / "report.json").write_text(json.dumps(asdict(result)))
    assert read_evaluation(tmp_path / "report.json") == result


def test_what_is_not_a_run_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        write_report(tmp_path / "missing")
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_verdicts_shows_dashes_and_other_sizes_of_pass_at_k_stand_in_their_own_columns(
    tmp_path: Path,
) -> None:
    sizes = {"1": 0.5, "4": 0.625, "8": 0.75}
    told = EvalTask("told", 8, 8, 0.5, 0.1, 0.5, 0.75, 1.0, 10.0, 0.0, pass_at=sizes)
    silent = EvalTask("silent", 3, 8, None, None, None, None, None, 10.0, 0.0, n_judged=0)
    for label in ("base", "rl"):
        result = json.dumps(asdict(EvalResult(label, replace(told, task="all"), (told, silent))))
        write_artifact(tmp_path, f"evaluate_{label}", EvalReport, {"report.json": result, "samples.jsonl": ""}, {})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    cells = outline(page).cells
    told_at, silent_at = cells.index("told"), cells.index("silent")
    assert cells[told_at + 6 : told_at + 10] == ["62.5%", "62.5%", "75.0%", "75.0%"]
    assert cells[silent_at : silent_at + 17] == ["silent", "3", *["–"] * 10, "10", "10", "0.0%", "0.0%", "–"]
    assert re.findall(r">(pass@\d+)</th>", page) == ["pass@1", "pass@4", "pass@8"]


def test_nothing_judged_at_all_is_reported_too(tmp_path: Path) -> None:
    silent = EvalTask("all", 3, 8, None, None, None, None, None, 10.0, 0.0, n_judged=0)
    for label in ("base", "rl"):
        result = json.dumps(asdict(EvalResult(label, silent, (silent,))))
        write_artifact(tmp_path, f"evaluate_{label}", EvalReport, {"report.json": result, "samples.jsonl": ""}, {})
    assert "one has no prompt with a verdict" in write_report(tmp_path).read_text(encoding="utf-8")
    assert cli.main(["report", str(tmp_path), str(tmp_path)]) == 0


def test_evaluations_keep_the_order_of_the_graph_when_the_first_is_made_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=3)
    kept = {found.path.parent.name: found.manifest for found in collect(run).artifacts}
    assert [result.label for result in collect(run).evaluations] == ["base", "r1_zero"]
    shutil.rmtree(run / "artifacts" / "evaluate_base-0123456789ab")
    evaluate(run, "base", 0.31, dict(kept["evaluate_base-0123456789ab"].inputs))
    found = collect(run)
    assert found.artifacts[-1].path.parent.name.startswith("evaluate_base")  # finished last
    assert [result.label for result in found.evaluations] == ["base", "r1_zero"]
    assert "+43.0" in outcome(found.evaluations)


def test_a_checkpoint_that_nothing_has_changed_still_has_its_place(tmp_path: Path) -> None:
    """Its content is that of the base, its own input."""
    files = {"config.json": "{}", "tokenizer.json": "{}"}
    same = write_artifact(tmp_path, "pretrain", Checkpoint, files, {})
    assert write_artifact(tmp_path, "grpo", Checkpoint, files, {"base": same}) == same
    for label in ("base", "tuned"):
        evaluate(tmp_path, label, 0.5, {"checkpoint": same})
    assert [result.label for result in collect(tmp_path).evaluations] == ["base", "tuned"]
