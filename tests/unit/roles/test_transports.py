"""How weights travel follows from the nodes, and how long they may take from their bytes."""

from __future__ import annotations

from pathlib import Path

from framework.engines.weights import LEAST_LIMIT_S, SLOWEST_BYTES_S
from framework.graph.cluster import ClusterConfig
from framework.roles.learner import LearnerConfig
from framework.roles.learner_group import LearnerGroup
from framework.roles.transports import describe, least_seconds, transport_of


def test_one_node_maps_and_several_serve_each_other() -> None:
    assert transport_of(ClusterConfig()) == transport_of(ClusterConfig(gpus_per_node=8, cpus=16)) == "memory"
    assert transport_of(ClusterConfig(num_nodes=2)) == "network"
    assert "gloo" in describe("network")
    assert "gloo" not in describe("memory")


def test_publishing_has_the_time_that_the_checkpoints_bytes_need(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "b.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "config.json").write_bytes(b"0" * 1000)
    expected = 2 * (LEAST_LIMIT_S + 2000 / SLOWEST_BYTES_S)
    assert least_seconds(tmp_path) == expected
    group = LearnerGroup(LearnerConfig(tmp_path))
    assert group._least == {"publish": expected}
