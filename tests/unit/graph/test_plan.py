"""The plan's text: edges, batch maths, memory that does not fit, hours and cost."""

from __future__ import annotations

from dataclasses import dataclass

from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Graph
from framework.graph.plan import RoleEstimate, StageEstimate, describe_plan
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
