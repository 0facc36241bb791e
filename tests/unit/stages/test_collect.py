from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from framework.config import compose
from framework.data.readers import read_prompts
from framework.data.solutions import SOLVERS
from framework.data.splits import check_disjoint
from framework.data.tasks import TaskConfig, generate, split_of, unique_prompts
from framework.data.text.shard_files import read_text
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.runner import NullTracker
from framework.stages.collect import Collect, CollectConfig, NoInputs
from framework.types import Prompt


def runtime(directory: Path, seed: int = 0) -> Runtime:
    return Runtime(
        "collect", directory / "work", directory / "out", seed, ClusterConfig(), NullTracker(), lambda: False
    )


def small() -> CollectConfig:
    config = compose([]).data
    assert isinstance(config, CollectConfig)
    return replace(config, documents=600, validation_documents=50, train_prompts=300, heldout_prompts=60)


def test_heldout_questions_reach_neither_text_nor_train_prompts(tmp_path: Path) -> None:
    collected = Collect(small()).run(NoInputs(), runtime(tmp_path))
    train = read_prompts(collected.prompts.path / "train.jsonl")
    heldout = read_prompts(collected.prompts.path / "heldout.jsonl")
    assert (len(train), len(heldout)) == (300, 60)
    assert not {p.id for p in train} & {p.id for p in heldout}
    assert not {p.text for p in train} & {p.text for p in heldout}
    documents = list(read_text(collected.text.path, "train"))
    assert len(documents) == 600
    for document in documents:
        assert not any(f"User: {prompt.text} Assistant:" in document.text for prompt in heldout)
        assert not any(f"User: {prompt.text}. Assistant:" in document.text for prompt in heldout)


def test_another_seed_gives_other_prompts_but_never_crosses_the_split(tmp_path: Path) -> None:
    first, second = (Collect(small()).run(NoInputs(), runtime(tmp_path / str(s), s)) for s in (0, 1))
    train = {p.text for p in read_prompts(first.prompts.path / "train.jsonl")}
    heldout = {p.text for p in read_prompts(second.prompts.path / "heldout.jsonl")}
    assert not train & heldout
    assert train != {p.text for p in read_prompts(second.prompts.path / "train.jsonl")}


@pytest.mark.parametrize("task", sorted(compose([]).data.tasks))
def test_careful_solutions_reach_the_reference_answer(task: str) -> None:
    config = compose([]).data.tasks[task]
    for prompt in generate(task, config, seed=11, size=400):
        assert SOLVERS[task](prompt, None).answer == prompt.answer, prompt.text


def test_overlap_is_refused_by_id_and_by_text() -> None:
    one, two = Prompt("a", "x", "t", "1"), Prompt("b", "x", "t", "1")
    with pytest.raises(UserError, match="its text"):
        check_disjoint([one], [two])
    with pytest.raises(UserError, match="its id"):
        check_disjoint([one], [Prompt("a", "y", "t", "1")])


def test_a_task_too_small_for_its_share_is_one_clear_error() -> None:
    task = TaskConfig({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    with pytest.raises(UserError, match="different"):
        unique_prompts({"chain_sum": task}, "train", 5000, 0.1, 0)


@pytest.mark.parametrize(
    ("task", "params", "where"),
    [("chain_summ", {}, "did you mean 'chain_sum'"), ("chain_sum", {"terms": 3}, "params")],
)
def test_unknown_tasks_and_parameters_are_named(task: str, params: dict[str, int], where: str) -> None:
    with pytest.raises(UserError, match=where):
        list(generate(task, TaskConfig(params), 0, 1))


def test_split_depends_on_the_text_alone() -> None:
    shares = [split_of(f"question {i}", 0.25) for i in range(4000)]
    assert 0.22 < shares.count("heldout") / 4000 < 0.28
    assert shares == [split_of(f"question {i}", 0.25) for i in range(4000)]
