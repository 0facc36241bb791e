"""Placement on real Ray with logical GPUs, which it assigns to actors as it does real ones: 2, then 4 nodes of 2."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.actors import preflight
from framework.errors import RunFailed, Stopped, UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.deadlines import Deadlines
from framework.roles.placement import Placement, Seat, reserved

TWO = ClusterConfig(
    num_nodes=2, gpus_per_node=2, cpus=8, learner_cpus=0.1, rollout_cpus=0.1, deadlines=Deadlines(place=3.0)
)
FOUR = replace(TWO, num_nodes=4)


class Reporter:
    """Tells where it is, as a sampler finds it once it has taken its seat."""

    def __init__(self, seat: Seat | None = None) -> None:
        self.executor = seat and seat.take()

    async def where(self) -> tuple[str, str, str | None]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        return node, os.environ.get("CUDA_VISIBLE_DEVICES", ""), self.executor


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 4, "num_gpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield lambda: [cluster.add_node(**node) for _ in range(2)]
    finally:
        ray.shutdown()
        cluster.shutdown()


def found(placement: Placement) -> tuple[list[tuple[str, str]], list[tuple[str, str, str | None]]]:
    """(Node, GPUs) of every learner's rank, and (node, GPUs, executor) of every sampler, as their actors tell."""
    import ray

    actor = ray.remote(Reporter)
    with reserved(placement) as seats:
        learners = [actor.options(**options).remote() for options in seats.learner_options()]
        pairs = zip(seats.rollout_options(), seats.seats(), strict=True)
        samplers = [actor.options(**options).remote(seat) for options, seat in pairs]
        told = ray.get([each.where.remote() for each in [*learners, *samplers]], timeout=300)
    return [place[:2] for place in told[: len(learners)]], told[len(learners) :]


def test_an_over_asked_cluster_ends_within_its_deadline_with_one_line(nodes: Any) -> None:
    began = time.monotonic()
    with pytest.raises(RunFailed) as error, reserved(Placement(FOUR, learners=8)):
        pass
    assert time.monotonic() - began < 3 * TWO.deadlines.place
    assert "missing 2 of 4 nodes with 2 GPUs" in str(error.value)
    assert "4 GPUs; free are 4 GPUs" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(Stopped), reserved(Placement(FOUR, learners=8), lambda: True):
        pass


def test_every_node_is_looked_at_before_anything_starts(
    nodes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = replace(TWO, object_store_gib=0.1, deadlines=Deadlines(place=120.0))
    monkeypatch.setattr(preflight, "LEAST_SHM", 0)
    monkeypatch.setattr(preflight, "STORE_SHARE", 0.0)
    preflight.check_nodes(on, tmp_path)
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    monkeypatch.setattr(preflight, "STORE_SHARE", 1e3)
    with pytest.raises(UserError, match="Ray cluster: got '3 of 2 nodes'; cannot take part"):
        preflight.check_nodes(replace(on, num_nodes=3), tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in told] == ["node", "node", "1"]
    assert all("its object store has" in line for line in told[:2])


def test_shared_cards_hold_one_rank_and_one_share_of_a_sampler(nodes: Any) -> None:
    shared = replace(TWO, colocate=True)
    learners, samplers = found(Placement(shared, learners=4, rollouts=2, tensor_parallel_size=2))
    first, second = learners[0][0], learners[2][0]
    assert first != second
    assert learners == [(first, "0"), (first, "1"), (second, "0"), (second, "1")]
    assert samplers == [(first, "0,1", "mp"), (second, "0,1", "mp")]


def test_split_cards_are_nobodys_twice(nodes: Any) -> None:
    learners, samplers = found(Placement(TWO, learners=2, rollouts=2))
    assert [gpu for _, gpu in learners] == ["0", "1"]
    assert [(gpu, executor) for _, gpu, executor in samplers] == [("0", None), ("1", None)]
    assert {node for node, _ in learners} & {node for node, *_ in samplers} == set()


def test_four_nodes_and_samplers_of_two_nodes_each(nodes: Any) -> None:
    nodes()
    wide = Placement(replace(FOUR, colocate=True), learners=8, rollouts=2, tensor_parallel_size=4)
    learners, samplers = found(wide)
    places = [node for node, _ in learners]
    assert len(set(learners)) == 8
    assert [gpu for _, gpu in learners] == ["0", "1"] * 4
    assert places[::2] == places[1::2]
    assert [(node, executor) for node, _, executor in samplers] == [(places[0], "ray"), (places[4], "ray")]
    with (
        pytest.raises(UserError, match=r"gpus_per_node: got 8; .* have 2, 2, 2, 2 GPUs.*finds no whole node"),
        reserved(Placement(replace(FOUR, num_nodes=1, gpus_per_node=8), rollouts=1, tensor_parallel_size=8)),
    ):
        pass
