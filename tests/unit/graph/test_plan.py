"""The plan's text: edges, batch maths, memory that does not fit, hours and cost."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Graph
from framework.graph.plan import RoleEstimate, StageEstimate, check_complete, describe_plan
from framework.stages.given import GivenCheckpoint
from tests.unit.toy_graph import Train, Write


@dataclass(frozen=True)
class Costly(Train):
    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        learner = RoleEstimate("learner", 16, 16, {"weights": 50.0, "optimizer": 40.0})
        return StageEstimate({"responses per step": 8192}, (learner,), 10.0, ("a guess",))


def test_plan_names_edges_memory_hours_and_cost() -> None:
    graph = Graph()
    write = graph.add("write", Write())
    graph.add("train", Costly(), corpus=write.out("text"))
    graph.add("again", Costly(), corpus=write.out("text"))
    text = describe_plan(graph, ClusterConfig(num_nodes=2, gpus_per_node=8, gpu_hour_usd=2.0), "title")
    assert "in   corpus: TextSet from write.text" in text
    assert "out  checkpoint: Checkpoint" in text
    assert "responses per step: 8,192" in text
    assert "90.0 GiB per GPU (weights 50.0, optimizer 40.0)  DOES NOT FIT in 80 GiB" in text
    assert "about 10.0 h, 160 GPU hours, $320" in text
    assert "total: 20.0 h, 320 GPU hours, $640" in text
    assert text.count("a guess") == 1


def test_plan_without_a_gpu_has_no_cost() -> None:
    graph = Graph()
    graph.add("write", Write())
    text = describe_plan(graph, ClusterConfig(), "title")
    assert "2 CPU cores, no GPU" in text
    assert "$" not in text


def test_choices_are_a_table_that_marks_the_configured_one_and_what_does_not_fit() -> None:
    fits, large = {"weights": 20.0, "optimizer": 30.5}, {"weights": 1000.0, "optimizer": 30.5}
    role = RoleEstimate(
        "learner", 8, 8, fits, choices={"EP 1": {"A": large, "B": fits}, "EP 2": {"A": fits, "B": fits}},
        chosen=("EP 2", "B"),
    )  # fmt: skip
    estimate = StageEstimate(roles=(role,))

    @dataclass(frozen=True)
    class Sharded(Write):
        def estimate(self, cluster: ClusterConfig) -> StageEstimate:
            return estimate

    graph = Graph()
    graph.add("write", Sharded())
    lines = [line.strip() for line in describe_plan(graph, ClusterConfig(gpus_per_node=8), "title").splitlines()]
    at = lines.index("GiB: weights + optimizer; * as configured, ! more than 80")
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["A", "B"],
        ["EP", "1", "1,030.5!", "=", "1,000.0+30.5", "50.5", "=", "20.0+30.5"],
        ["EP", "2", "50.5", "=", "20.0+30.5", "*50.5", "=", "20.0+30.5"],
    ]


def test_what_a_run_lacks_is_planned_with_its_key_and_refused_before_a_run() -> None:
    graph = Graph()
    graph.add("write", Write())
    check_complete(graph)
    graph.add("student", GivenCheckpoint("stage.distill_qwen.base", "qwen_7b"))
    graph.notes["write"] = "the paper's own: 5,000 H800 hours"
    lines = [line.strip() for line in describe_plan(graph, ClusterConfig(), "title").splitlines()]
    lacking = "stage.distill_qwen.base: got None; must name a checkpoint of qwen_7b: a directory"
    assert f"before a run: {lacking}" in lines
    assert lines[lines.index("1. write  (Write)") + 2] == "the paper's own: 5,000 H800 hours"
    with pytest.raises(UserError, match=r"stage\.distill_qwen\.base: got None"):
        check_complete(graph)
