"""Which GPUs each role of a stage has: one placement group, a bundle a GPU, bundles in the order of the nodes.

    place     0    1    2    3     4    5    6    7      two nodes of four GPUs, samplers of tensor-parallel size 2
    shared    learner ranks 0 to 7, one a GPU; sampler j on GPUs 2j and 2j + 1 as well
    split     learner ranks 0 to 3; samplers 0 and 1 on GPUs 4, 5 and 6, 7

Without the group Ray fills a GPU up before it opens the next: two samplers, or two ranks of one collective, would sit
on the same card. A sampler's GPUs lie in one node (vLLM's processes), or are whole nodes (vLLM's Ray workers, in the
same group). Roles that share a card have both their memory on it: neither gives it back while the other works.
Reward workers have CPUs alone, wherever there are some, or with `cluster.reward_gpus` the GPUs behind the samplers'.
Without GPUs nothing is placed: Ray books CPUs.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from framework.engines.cpu.environment import worker_environment
from framework.engines.device import device_environment
from framework.errors import RunFailed, Stopped, UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.deadlines import Deadlines
from framework.graph.stop import never_stop

BOOKED = 0.9  # of a GPU, by the roles that have it; what is left lets a bundle be asked which GPU it is
ASKING = 0.01
BOOKED_PARTS = 1000  # of a CPU: Ray counts in ten-thousandths
GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """Places 0, 1, 2 … are the cluster's GPUs in the order of its nodes; pure arithmetic, nothing is started.

    Raises UserError for more GPUs than there are, and a tensor-parallel size that is neither part of a node nor whole
    nodes. Example: `Placement(ClusterConfig(gpus_per_node=8, colocate=True), learners=8, rollouts=4,
    tensor_parallel_size=2).rollout(1) == (2, 3)`.
    """

    cluster: ClusterConfig
    learners: int = 0
    rollouts: int = 0
    tensor_parallel_size: int = 1
    rewards: int = 0  # workers; they have GPUs where `cluster.reward_gpus` says so, several on one if it is a share
    critic: bool = False  # a rank of it sits beside each learner's

    def __post_init__(self) -> None:
        cluster, size = self.cluster, self.tensor_parallel_size
        if not cluster.gpus:
            return
        if self.rollouts:
            cluster.check_tensor_parallel(size)
        on_rewards = -(-self.rewards // self._rewards_a_gpu) if cluster.reward_gpus else 0
        if self._after_samplers + on_rewards > cluster.gpus:
            asked = f"{self.rollouts * size} for {self.rollouts} rollout workers, {self.learners} for learners"
            asked += f", {on_rewards} for rewards" if on_rewards else ""
            sharing = "shared" if cluster.colocate else "not shared: cluster.colocate=false"
            raise UserError("cluster.num_nodes x cluster.gpus_per_node", cluster.gpus, f"must hold {asked}, {sharing}")

    @property
    def _first(self) -> int:
        """Place of the first sampler's first GPU: beside the learners, where none of its nodes is cut."""
        if self.cluster.colocate or not self.cluster.gpus:
            return 0
        unit = min(self.tensor_parallel_size, self.cluster.gpus_per_node)
        return -(-self.learners // unit) * unit

    @property
    def _after_samplers(self) -> int:
        """The first place that neither learners nor samplers have."""
        return max(self.learners, self._first + self.rollouts * self.tensor_parallel_size)

    @property
    def _rewards_a_gpu(self) -> int:
        return int(1 / self.cluster.reward_gpus)

    @property
    def across_nodes(self) -> bool:
        """Whether a sampler takes more GPUs than a node has."""
        return bool(self.cluster.gpus) and self.tensor_parallel_size > self.cluster.gpus_per_node

    def learner(self, rank: int) -> tuple[int, ...]:
        """Place of a learner's rank; nothing without GPUs."""
        return (rank,) if self.cluster.gpus else ()

    def rollout(self, worker: int) -> tuple[int, ...]:
        """Places of a sampler, in the order of its tensor-parallel ranks; nothing without GPUs."""
        first, size = self._first + worker * self.tensor_parallel_size, self.tensor_parallel_size
        return tuple(range(first, first + size)) if self.cluster.gpus else ()

    def reward(self, worker: int) -> tuple[int, ...]:
        """Place of a reward worker, behind the samplers; nothing where it needs no GPU."""
        return (self._after_samplers + worker // self._rewards_a_gpu,) if self.cluster.reward_gpus else ()

    def device(self, place: int) -> tuple[int, int]:
        """Node and GPU in it."""
        return divmod(place, self.cluster.gpus_per_node)

    @property
    def share(self) -> float:
        """What one role books of a GPU."""
        return BOOKED / (1 + self.cluster.colocate + self.critic)

    def bundles(self) -> tuple[dict[str, float], ...]:
        """What every place books: a GPU, and its part of the CPUs of all roles that have GPUs.

        All alike, as which bundle becomes which place is known once they are reserved; so the actors themselves book
        no CPUs.
        """
        if not (count := self.cluster.gpus):
            return ()
        cpus = self.learners * self.cluster.learner_cpus + self.rollouts * self.cluster.rollout_cpus
        cpus += self.rewards if self.cluster.reward_gpus else 0
        each = ceil(cpus / count * BOOKED_PARTS) / BOOKED_PARTS
        return ({"GPU": 1.0, **({"CPU": each} if each else {})},) * count


@dataclass(frozen=True)
class Seat:
    """The bundles of one sampler; it takes them itself, so that a restarted one finds the GPUs of its own time."""

    bundles: tuple[int, ...] = ()
    across_nodes: bool = False
    share: float = BOOKED

    def take(self) -> Literal["mp", "ray"] | None:
        """Let vLLM, which is not imported yet, see its GPUs; return how it is to start its workers.

        One GPU, or none: as vLLM and Ray choose. Several of a node: processes that see them all. Whole nodes: Ray
        workers in the bundles.
        """
        if len(self.bundles) < 2:
            return None
        if self.across_nodes:
            os.environ["VLLM_RAY_BUNDLE_INDICES"] = ",".join(map(str, self.bundles))
            os.environ["VLLM_RAY_PER_WORKER_GPUS"] = str(self.share)
            return "ray"
        import ray

        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
            gpu for _, gpu in _asked(ray.util.get_current_placement_group(), self.bundles)
        )
        return "mp"


@dataclass(frozen=True)
class Seats:
    """A placement that stands: what Ray is told for each actor."""

    placement: Placement
    group: Any = None  # Ray's placement group; None without GPUs
    order: tuple[int, ...] = ()  # place -> the group's bundle

    def learner_options(self) -> list[dict[str, Any]]:
        """Ray's options for each rank of the learner."""
        placement = self.placement
        cpus, ranks = placement.cluster.learner_cpus, range(placement.learners)
        return [self._options(cpus, placement.learner(rank), placement.share) for rank in ranks]

    def critic_options(self) -> list[dict[str, Any]]:
        """Ray's options for each rank of the critic, on the learner's GPU; its cores are the learner's."""
        return [{**options, "num_cpus": 0} for options in self.learner_options()]

    def rollout_options(self) -> list[dict[str, Any]]:
        """Ray's options for each sampler. Ray's workers take the GPUs of one that spans nodes."""
        placement = self.placement
        share = 0.0 if placement.across_nodes else placement.share
        cpus, workers = placement.cluster.rollout_cpus, range(placement.rollouts)
        return [self._options(cpus, placement.rollout(worker), share) for worker in workers]

    def reward_options(self) -> list[dict[str, Any]]:
        """Ray's options for each reward worker; one without a GPU sees none, or it could take a sampler's memory."""
        placement, found = self.placement, list[dict[str, Any]]()
        for worker in range(placement.rewards):
            places = placement.reward(worker)
            options = {"num_cpus": int(not places), "runtime_env": {"env_vars": device_environment(bool(places))}}
            if places:
                options["num_gpus"] = BOOKED / placement._rewards_a_gpu
                options["scheduling_strategy"] = _in_bundle(self.group, self.order[places[0]])
            found.append(options)
        return found

    def seats(self) -> list[Seat]:
        """The seat of each sampler."""
        found = (self.placement.rollout(worker) for worker in range(self.placement.rollouts))
        return [
            Seat(tuple(self.order[place] for place in places), self.placement.across_nodes, self.placement.share)
            for places in found
        ]

    def _options(self, cpus: float, places: Sequence[int], share: float) -> dict[str, Any]:
        environment = {"env_vars": worker_environment(cpus, bool(places))}
        if not places:
            return {"num_cpus": cpus, "num_gpus": 0, "runtime_env": environment}
        return {
            "num_cpus": 0,  # the bundle has them
            "num_gpus": share,
            "runtime_env": environment,
            "scheduling_strategy": _in_bundle(self.group, self.order[places[0]]),
        }


@contextmanager
def reserved(
    placement: Placement, should_stop: Callable[[], bool] = never_stop, deadlines: Deadlines | None = None
) -> Iterator[Seats]:
    """Reserve the GPUs of the whole cluster for the length of a block; its actors end with it.

    Raises RunFailed, naming what is missing, where there is no place within `deadlines.place` (the cluster's by
    default), UserError where the nodes are not those of the settings, Stopped once the run is to stop.
    """
    if not placement.cluster.gpus:
        yield Seats(placement)
        return
    import ray

    table = deadlines or placement.cluster.deadlines
    group = ray.util.placement_group(list(placement.bundles()), strategy="PACK")
    try:
        _wait(group, placement, table, should_stop)
        yield Seats(placement, group, _in_order(placement, _asked(group, range(placement.cluster.gpus), table.start)))
    finally:
        ray.util.remove_placement_group(group)


def _wait(group: Any, placement: Placement, deadlines: Deadlines, should_stop: Callable[[], bool]) -> None:
    import ray

    began, said, ready = time.monotonic(), False, group.ready()
    while not ray.wait([ready], timeout=1.0)[0]:
        waited = time.monotonic() - began
        if should_stop():
            raise Stopped("stopped while the roles waited for their GPUs; the same command resumes")
        if waited > deadlines.place:
            raise RunFailed(f"the roles found no place for {waited:.0f} s: {_lacking(placement)}")
        if waited > deadlines.notice(deadlines.place) and not said:
            said = True
            print(f"waiting for the roles' places for {waited:.0f} s: {_lacking(placement)}", flush=True)


def _lacking(placement: Placement) -> str:
    import ray
    from ray._private.state import available_resources_per_node

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    free = [node for key, node in available_resources_per_node().items() if key in alive]
    return what_is_missing(placement.bundles(), placement.cluster.gpus_per_node, free)


def what_is_missing(bundles: Sequence[Mapping[str, float]], per_node: int, free: Sequence[Mapping[str, float]]) -> str:
    """Say in one line how many nodes, and how much of what, lacks for `bundles`, `per_node` of them on each node.

    `free`: what each node has left. Bytes of memory are told in GiB.
    """
    nodes = [sum(map(Counter, bundles[at : at + per_node]), Counter[str]()) for at in range(0, len(bundles), per_node)]
    left, unplaced = sorted(free, key=lambda node: node.get("CPU", 0)), list[Mapping[str, float]]()
    for node in nodes:
        fitting = next((one for one in left if all(one.get(name, 0) >= n for name, n in node.items())), None)
        if fitting is None:
            unplaced.append(node)
        else:
            left = [one for one in left if one is not fitting]
    asked = sum(nodes, Counter[str]())
    has = {name: sum(one.get(name, 0) for one in free) for name in asked}
    short = {name: n - has[name] for name, n in asked.items() if n > has[name]}
    each = max(nodes, key=lambda node: sum(node.values()))
    parts = [f"{len(unplaced)} of {len(nodes)} nodes with {_amounts(each)} each", *([_amounts(short)] if short else [])]
    return f"missing {', '.join(parts)}; free are {_amounts(has)} on {len(free)} nodes"


def _amounts(resources: Mapping[str, float]) -> str:
    def one(name: str, amount: float) -> str:
        if "memory" in name:
            return f"{amount / GIB:.1f} GiB of {name.replace('_', ' ')}"
        return f"{amount:g} {name}{'s' if amount != 1 else ''}"

    return " and ".join(one(name, amount) for name, amount in resources.items())


def _in_bundle(group: Any, bundle: int) -> Any:
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def _asked(group: Any, bundles: Sequence[int], limit_s: float | None = None) -> list[tuple[str, str]]:
    """(Node id, GPU id) of each bundle, by a task in it; raises RunFailed if they do not answer in time."""
    import ray

    ask, each = ray.remote(_where), {"num_cpus": 0, "num_gpus": ASKING, "max_retries": 3}
    calls = [ask.options(scheduling_strategy=_in_bundle(group, bundle), **each).remote() for bundle in bundles]
    try:
        found: list[tuple[str, str]] = ray.get(calls, timeout=limit_s)
    except ray.exceptions.GetTimeoutError:
        late = len(ray.wait(calls, num_returns=len(calls), timeout=0)[1])
        raise RunFailed(f"{late} of {len(calls)} GPUs' processes have not started within {limit_s:g} s") from None
    return found


def _where() -> tuple[str, str]:
    import ray

    return ray.get_runtime_context().get_node_id(), str(ray.get_gpu_ids()[0])


def _in_order(placement: Placement, found: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Place -> bundle. Raises UserError if a sampler's GPUs would lie on two nodes, or parts of nodes."""
    import ray

    addresses = {node["NodeID"]: tuple(node["NodeManagerAddress"].split(".")) for node in ray.nodes()}
    order, held = in_node_order(found, addresses), Counter(node for node, _ in found)
    if placement.rollouts:
        size, each = placement.tensor_parallel_size, placement.cluster.gpus_per_node
        for worker in range(placement.rollouts):
            nodes = {found[order[place]][0] for place in placement.rollout(worker)}
            if len(nodes) > -(-size // each):
                allowed = f"the Ray cluster's nodes have {', '.join(map(str, held.values()))} GPUs of the run's"
                raise UserError("cluster.gpus_per_node", each, f"{allowed}: a sampler of {size} finds no whole node")
    return order


def in_node_order(found: Sequence[tuple[str, str]], addresses: Mapping[str, tuple[str, ...]]) -> tuple[int, ...]:
    """Bundles by node, then GPU; nodes that hold more of them come first, then by address. `found`: of each bundle."""
    held = Counter(node for node, _ in found)

    def key(bundle: int) -> tuple[Any, ...]:
        node, gpu = found[bundle]
        address = [(len(part), part) for part in addresses.get(node, ())]
        return -held[node], address, node, (len(gpu), gpu)

    return tuple(sorted(range(len(found)), key=key))
