"""The job graph: edges are checked when they are made, order when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.artifacts import Checkpoint, TextSet
from framework.errors import UserError
from framework.graph.nodes import Graph, Node, OutputRef, Runtime
from tests.unit.toy_graph import Evaluate, Model, Train, Write


@dataclass(frozen=True)
class Unannotated:
    def run(self, inputs, runtime):  # type: ignore[no-untyped-def]
        return None


@dataclass(frozen=True)
class NoArtifact:
    def run(self, inputs: Write, runtime: Runtime) -> Model:
        raise NotImplementedError


def test_nodes_come_after_what_they_wait_for() -> None:
    graph = Graph()
    write = graph.add("write", Write())
    graph.add("other", Write())
    train = graph.add("train", Train(), corpus=write.out("text"))
    graph.add("evaluate", Evaluate(), checkpoint=train.out("checkpoint"))
    assert [node.name for node in graph.order()] == ["write", "other", "train", "evaluate"]
    assert train.output_types == {"checkpoint": Checkpoint}


def test_edge_of_the_wrong_type_names_both_ends() -> None:
    graph = Graph()
    write = graph.add("write", Write())
    with pytest.raises(UserError) as error:
        graph.add("train", Train(), corpus=write.out("text"), base=write.out("text"))
    assert str(error.value) == "train.base wants Checkpoint, got TextSet from write.text"
    assert "train" not in graph.nodes


def test_missing_extra_and_duplicate() -> None:
    graph = Graph()
    write = graph.add("write", Write())
    with pytest.raises(UserError, match=r"train\.corpus: got 'no edge'; wants TextSet"):
        graph.add("train", Train())
    with pytest.raises(UserError, match=r"train\.corpsu: .*did you mean 'corpus'"):
        graph.add("train", Train(), corpsu=write.out("text"))
    with pytest.raises(UserError, match="node write: got 'added twice'"):
        graph.add("write", Write())
    with pytest.raises(UserError, match=r"write\.txt: .*did you mean 'text'"):
        write.out("txt")


@pytest.mark.parametrize("stage", [Unannotated(), NoArtifact(), "no stage"])
def test_what_is_no_stage_is_refused(stage: object) -> None:
    with pytest.raises(UserError):
        Graph().add("bad", stage, inputs=TextSet(Path()))  # type: ignore[arg-type]


def test_cycle_is_named() -> None:
    graph = Graph()
    graph.add("a", Evaluate(), checkpoint=OutputRef("b", "checkpoint", Checkpoint))
    graph.add("b", Evaluate(), checkpoint=OutputRef("a", "checkpoint", Checkpoint))
    with pytest.raises(UserError, match="a -> b -> a"):
        graph.order()


def test_edge_from_a_node_of_another_graph() -> None:
    graph, other = Graph(), Graph()
    write: Node = other.add("write", Write())
    graph.add("train", Train(), corpus=write.out("text"))
    with pytest.raises(UserError, match="an edge from write"):
        graph.order()


def test_existing_artifact_is_checked_before_anything_starts(tmp_path: Path) -> None:
    graph = Graph()
    graph.add("train", Train(), corpus=TextSet(tmp_path))
    with pytest.raises(UserError, match=r"train-00000\.jsonl"):
        graph.check()
    (tmp_path / "train-00000.jsonl").write_text("{}\n")
    graph.check()
