"""A run up to a node, and one that begins in the middle with a checkpoint of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework.artifacts import Checkpoint, RewardCheckpoint, write_manifest
from framework.config import build_graph, compose
from framework.errors import UserError
from framework.graph.cut import from_node, up_to
from framework.graph.nodes import EdgeError, Graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build_graph(compose([]))


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.order()]


def test_a_run_ends_after_a_node(graph: Graph) -> None:
    assert names(up_to(graph, "pretrain")) == ["collect", "clean", "tokenizer", "tokenize", "pretrain"]
    assert names(build_graph(compose(["until=collect"]))) == ["collect"]


def test_a_run_begins_at_a_node_with_a_checkpoint_and_makes_what_else_it_needs(graph: Graph, tmp_path: Path) -> None:
    cut = from_node(graph, "grpo", tmp_path)
    assert names(cut) == ["collect", "grpo", "eval_r1_zero"]  # no text, no tokenizer, no base; prompts are needed
    assert cut.nodes["grpo"].edges["base"] == Checkpoint(tmp_path)
    assert cut.nodes["eval_r1_zero"].edges == graph.nodes["eval_r1_zero"].edges
    assert names(up_to(from_node(graph, "eval_base", tmp_path), "eval_base")) == ["collect", "eval_base"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("until=pretrian", r"until: got 'pretrian'; did you mean 'pretrain'\? nodes of this job: collect, clean,"),
        ("from=grop", r"from: got 'grop'; did you mean 'grpo'\? nodes"),
        ("from=grpo", r"base: got None; must name the checkpoint that from=grpo starts with"),
    ],
)
def test_a_node_that_is_not_there_is_named(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_graph(compose([override]))


def test_a_node_without_a_checkpoint_or_with_another_kind_is_refused_at_plan(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"from: got 'clean'; starts from no checkpoint; nodes that do: eval_base"):
        from_node(graph, "clean", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    write_manifest(RewardCheckpoint(tmp_path), "stage", {}, {}, "")
    with pytest.raises(EdgeError, match=r"grpo\.base wants Checkpoint, got RewardCheckpoint from base="):
        from_node(graph, "grpo", tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: got 'no such file'; a Checkpoint needs tokenizer\.json"):
        from_node(graph, "grpo", tmp_path).check()


def test_sizes_are_those_of_the_base_unless_others_are_named(tmp_path: Path) -> None:
    model = compose([]).model
    assert model is not None
    keys = model.hf_config()
    keys.hidden_size = 256
    keys.save_pretrained(tmp_path)
    config = compose(["from=grpo", f"base={tmp_path}"])
    assert config.model is not None
    assert config.model.hidden_size == 256
    build_graph(config)
    with pytest.raises(UserError, match=r"model: got 'v3_tiny'; has hidden_size=128"):
        build_graph(compose(["from=grpo", f"base={tmp_path}", "model=v3_tiny"]))
