from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framework.config import build_graph, compose
from framework.data.readers import write_prompts
from framework.data.tasks import TaskConfig
from framework.errors import UserError
from framework.graph.plan import look_ahead
from framework.stages.collect import Collect, NoInputs
from framework.stages.references import SAMPLE, judge_given, judge_tasks, sample_of
from framework.types import Prompt
from tests.unit.stages.test_collect import runtime, small

REWARDS = compose([]).reward


def numbers(count: int, wrong: int | None = None) -> list[Prompt]:
    """Prompts of which number `wrong` has no answer that can be compared."""
    return [Prompt(f"p{i}", f"What is {i}?", "math", "$$" if i == wrong else str(i)) for i in range(count)]


def test_a_small_set_is_judged_whole_and_a_large_one_by_the_same_sample() -> None:
    assert sample_of(numbers(SAMPLE)) == tuple(numbers(SAMPLE))
    sample = sample_of(numbers(4 * SAMPLE))
    assert len({prompt.id for prompt in sample}) == SAMPLE
    assert sample == sample_of(numbers(4 * SAMPLE))


def test_what_was_judged_is_said_and_what_fails_is_named_with_its_file() -> None:
    said = judge_given(REWARDS, {"train.jsonl": numbers(SAMPLE + 1), "heldout.jsonl": numbers(2)})
    assert f"{SAMPLE} of {SAMPLE + 1} of train.jsonl, all 2 of heldout.jsonl" in said
    with pytest.raises(UserError, match=r"^heldout.jsonl: prompt p1: answer: got '\$\$'"):
        judge_given(REWARDS, {"train.jsonl": numbers(3), "heldout.jsonl": numbers(3, wrong=1)})


def test_tasks_are_tried_by_name() -> None:
    assert "2 of chain_sum" in judge_tasks(REWARDS, {"chain_sum": TaskConfig()})
    with pytest.raises(UserError, match=r"^data\.tasks\.rush_hour: "):
        judge_tasks(REWARDS, {"chain_sum": TaskConfig(), "rush_hour": TaskConfig()})


def test_the_collect_stage_judges_every_prompt(tmp_path: Path) -> None:
    names = {"train": str(tmp_path / "t.jsonl"), "heldout": str(tmp_path / "h.jsonl")}
    write_prompts(Path(names["train"]), numbers(3 * SAMPLE, wrong=2 * SAMPLE + 1))
    write_prompts(Path(names["heldout"]), [Prompt("h", "What is 1 + 1?", "math", "2")])
    config = replace(small(), train_prompts_file=names["train"], heldout_prompts_file=names["heldout"])
    with pytest.raises(UserError, match=f"t.jsonl: prompt p{2 * SAMPLE + 1}: answer"):
        Collect(config, REWARDS).run(NoInputs(), runtime(tmp_path))
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_the_shipped_job_looks_ahead() -> None:
    (said,) = look_ahead(build_graph(compose(["job=r1_zero"])))
    assert "reference answers judged" in said
