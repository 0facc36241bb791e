"""Which GPUs each role has, on every cluster; the real ones, with logical GPUs, are in tests/ray/test_placement.py."""

from __future__ import annotations

from itertools import chain

import pytest

from framework.config import compose, group_options, named_model
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.roles.placement import GIB, Placement, Seat, in_node_order, what_is_missing

PAIRS = [(c, m) for c in group_options("cluster") for m in group_options("model") if named_model(m).policy]


def cluster(nodes: int = 2, gpus: int = 4, colocate: bool = True) -> ClusterConfig:
    return ClusterConfig(num_nodes=nodes, gpus_per_node=gpus, colocate=colocate, cpus=64)


def test_shared_cards_pair_ranks_with_samplers_in_node_order() -> None:
    found = Placement(cluster(), learners=8, rollouts=4, tensor_parallel_size=2)
    assert [found.device(*found.learner(rank)) for rank in range(8)] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3),
    ]  # fmt: skip
    assert [found.rollout(worker) for worker in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert 0.8 < 2 * found.share < 1
    assert found.bundles() == ({"GPU": 1.0, "CPU": 1.5},) * 8  # all alike: Ray's order is known afterwards


def test_split_cards_are_nobodys_twice_and_no_samplers_node_is_cut() -> None:
    found = Placement(cluster(colocate=False), learners=3, rollouts=1, tensor_parallel_size=4)
    assert found.rollout(0) == (4, 5, 6, 7)
    wide = Placement(cluster(4, colocate=False), learners=5, rollouts=1, tensor_parallel_size=8)
    assert wide.rollout(0) == tuple(range(8, 16))
    assert wide.across_nodes
    assert found.share > 0.8


@pytest.mark.parametrize(
    ("placement", "told"),
    [
        ({"learners": 9}, r"gpus_per_node: got 8; must hold 0 for 0 rollout workers, 9 for learners, shared"),
        ({"rollouts": 5, "tensor_parallel_size": 2}, "must hold 10 for 5 rollout workers"),
        ({"rollouts": 1, "tensor_parallel_size": 3}, r"tensor_parallel_size: got 3; must divide a node's 4 GPUs"),
        ({"rollouts": 1, "tensor_parallel_size": 6}, r"or be whole nodes: 1, 2, 4, 8"),
        ({"rollouts": 1, "tensor_parallel_size": 16}, "must hold 16 for 1 rollout workers"),
    ],
)
def test_what_there_is_no_place_for_is_refused(placement: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Placement(cluster(), **placement)


def test_split_roles_are_refused_where_only_shared_ones_fit() -> None:
    Placement(cluster(), learners=8, rollouts=4, tensor_parallel_size=2)
    with pytest.raises(UserError, match=r"not shared: cluster\.colocate=false"):
        Placement(cluster(colocate=False), learners=8, rollouts=4, tensor_parallel_size=2)


def test_rewards_that_are_models_have_the_gpus_behind_the_samplers() -> None:
    on = ClusterConfig(gpus_per_node=8, cpus=64, reward_gpus=0.5)
    found = Placement(on, learners=4, rollouts=1, tensor_parallel_size=2, rewards=3)
    assert [found.reward(worker) for worker in range(3)] == [(6,), (6,), (7,)]
    assert found.bundles() == ({"GPU": 1.0, "CPU": 1.0},) * 8
    with pytest.raises(UserError, match="must hold 2 for 1 rollout workers, 4 for learners, 3 for rewards"):
        Placement(on, learners=4, rollouts=1, tensor_parallel_size=2, rewards=5)
    assert Placement(cluster(), rewards=3).reward(0) == ()


def test_without_gpus_nothing_is_placed() -> None:
    found = Placement(ClusterConfig(), learners=1, rollouts=1, tensor_parallel_size=2)
    assert found.bundles() == found.learner(0) == found.rollout(0) == ()


@pytest.mark.parametrize(("on", "model"), PAIRS, ids=[f"{c}-{m}" for c, m in PAIRS])
def test_every_shipped_pair_has_a_device_for_each_actor(on: str, model: str) -> None:
    config = compose(["job=r1_zero", f"cluster={on}", f"model={model}", "stage.pretrain.workers=0"])
    found = config.cluster
    size = config.stage["grpo"].engine.rollout.tensor_parallel_size
    placement = Placement(found, found.learner_workers, found.rollout_workers, size)
    if not found.gpus:
        assert placement.bundles() == ()
        return
    bundles = placement.bundles()
    assert all(bundle == bundles[0] for bundle in bundles)  # which of them is which place is Ray's to choose
    assert bundles[0]["CPU"] * found.gpus + found.reward_workers <= found.cpus
    ranks = [placement.device(*placement.learner(rank)) for rank in range(found.learner_workers)]
    assert ranks == sorted(set(ranks))
    samplers = [placement.rollout(worker) for worker in range(found.rollout_workers)]
    taken = list(chain(*samplers))
    assert len(taken) == len(set(taken)) == found.rollout_workers * size
    assert max(taken) < found.gpus
    for places in samplers:
        nodes = [node for node, _ in map(placement.device, places)]
        assert nodes == sorted(nodes)
        assert len(set(nodes)) == -(-size // found.gpus_per_node)
    if not found.colocate:
        assert not set(taken) & set(range(found.learner_workers))


def test_bundles_are_counted_by_node_then_gpu() -> None:
    addresses = {"x": ("10", "0", "0", "10"), "y": ("10", "0", "0", "9"), "z": ("10", "0", "0", "1")}
    found = [("x", "1"), ("y", "10"), ("y", "2"), ("x", "0"), ("z", "0")]
    assert in_node_order(found, addresses) == (2, 1, 3, 0, 4)  # z holds fewer: no sampler of two could begin there


def test_what_is_missing_names_nodes_gpus_cpus_and_memory() -> None:
    bundles = [{"GPU": 1.0, "CPU": 4.0, "memory": 64.0 * GIB}] * 8
    told = what_is_missing(bundles, 4, [{"GPU": 4.0, "CPU": 10.0, "memory": 512.0 * GIB}, {"GPU": 2.0, "CPU": 64.0}])
    assert told == (
        "missing 2 of 2 nodes with 4 GPUs and 16 CPUs and 256.0 GiB of memory each, 2 GPUs; "
        "free are 6 GPUs and 74 CPUs and 512.0 GiB of memory on 2 nodes"
    )


def test_one_gpu_is_rays_to_show_and_whole_nodes_are_vllms_own_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_RAY_BUNDLE_INDICES", "VLLM_RAY_PER_WORKER_GPUS"):
        monkeypatch.setenv(name, "")
    assert Seat((3,)).take() is None
    assert Seat().take() is None
    assert Seat((4, 6, 5, 7), across_nodes=True, share=0.45).take() == "ray"
    import os

    assert os.environ["VLLM_RAY_BUNDLE_INDICES"] == "4,6,5,7"
    assert os.environ["VLLM_RAY_PER_WORKER_GPUS"] == "0.45"
