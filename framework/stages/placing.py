"""Ways to put a learner, or a learner and a sampler, on a cluster's GPUs, and the memory that each needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor, gcd

from framework.bounds import divisors
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Given
from framework.models.estimate import GIB, sampler_memory, training_memory
from framework.models.families.base import ModelConfig
from framework.stages.memory import rank_layout

FREE = 0.95  # share of a GPU that is filled, if that does: contexts, collectives' buffers and fragments take the rest
SEQUENCES = (8, 32, 256)  # whole ones at once: at least, if that fits; before micro-batches grow; at most
EXPERT_RANKS = 64  # the most that a layer's experts are spread over: V3 section 3.2
MICRO_TOKENS = 65_536  # a micro-batch of several rows is not made longer than this
ASLEEP_GIB = 2.0  # of a GPU that a role away from it keeps: its context, its collectives' buffers, its CUDA graphs
SHARES = (1 / 2, 3 / 4, 7 / 8, 1 / 4)  # of the GPUs that learners get, where the roles do not share theirs


@dataclass(frozen=True)
class Place:
    """Learner and sampler on the GPUs, and the GiB that they need of each."""

    colocate: bool
    turns: bool  # on shared GPUs: one of the two has their memory
    learners: int
    samplers: int  # rollout workers
    learner: DeepSpeedConfig
    sampler: VllmConfig
    learner_gib: float
    weights_gib: float  # of the sampler
    sequence_gib: float  # cache of one whole sequence

    @property
    def needed(self) -> float:
        """GiB of the fullest GPU."""
        return self.with_sequences(self.sampler.max_num_seqs)

    def with_sequences(self, sequences: int) -> float:
        """GiB of the fullest GPU with so many whole sequences at once."""
        sampling = self.weights_gib + sequences * self.sequence_gib
        if self.turns:
            return max(self.learner_gib, sampling) + ASLEEP_GIB
        return self.learner_gib + sampling if self.colocate else max(self.learner_gib, sampling)

    def room(self, limit: float) -> int:
        """Whole sequences that fit beside all else in `limit` GiB; below 0: not even the weights do."""
        if self.turns:
            limit -= ASLEEP_GIB
        free = limit - self.weights_gib - (self.learner_gib if self.colocate and not self.turns else 0.0)
        return -1 if self.learner_gib > limit or free < 0 else floor(free / self.sequence_gib)

    def holding(self, sequences: int) -> Place:
        """The same with room for so many sequences."""
        cache = max(round(sequences * self.sequence_gib + 0.005, 2), 0.01)
        return replace(self, sampler=replace(self.sampler, max_num_seqs=sequences, kv_cache_gib=cache))

    def describe(self, rows: int) -> str:
        """One line for people."""
        learning = f"learner {_sharding(self.learner)} {self.learner_gib:.1f}"
        sequences = self.sampler.max_num_seqs
        sampling = f"sampler TP {self.sampler.tensor_parallel_size} {self.weights_gib:.1f} + {sequences} sequences"
        sampling += f" of {rows:,} tokens {sequences * self.sequence_gib:.1f}"
        if self.turns:
            return f"each GPU holds {learning}, or in turn {sampling}: at most {self.needed:.1f}"
        if self.colocate:
            return f"each GPU holds {learning} + {sampling} = {self.needed:.1f}"
        return f"{self.learners} GPUs hold {learning}, the others {sampling}: at most {self.needed:.1f}"


@dataclass(frozen=True)
class Trainer:
    """A learner that has its GPUs for itself."""

    engine: DeepSpeedConfig
    gib: float
    rows: int  # tokens of the longest rows that fit; 0: none do

    def describe(self) -> str:
        """One line for people."""
        return f"each GPU holds {_sharding(self.engine)} {self.gib:.1f}"


def place_roles(
    model: ModelConfig,
    cluster: ClusterConfig,
    given: Given,
    sampler: VllmConfig,
    learner: DeepSpeedConfig,
    rows: int,
    turns: bool = False,
) -> tuple[Place, int]:
    """Return how sampler and learner share the GPUs for sequences of `rows` tokens; 0: it fits nowhere, 2: well.

    `turns`: nothing is sampled while the learner trains, so each may have the other's memory then.
    """
    places = list(_places(model, cluster, given, sampler, learner, rows, turns))
    least, better, most = SEQUENCES
    if given("engine.rollout.max_num_seqs"):
        least = better = most = sampler.max_num_seqs
    for wanted, share in ((least, FREE), (1, FREE), (1, 1.0)):
        limit = share * cluster.gpu_memory_gib
        for place in places:
            if (room := place.room(limit)) >= wanted:
                place = place.holding(min(room, better) if wanted == least else min(room, least))
                if not given("engine.learner.token_budget"):
                    place = _longer(model, cluster, place, rows, limit)
                grade = 2 if wanted == least and share == FREE else 1
                return place.holding(min(max(place.room(limit), 1), most)), grade
    best = min(places, key=lambda place: (place.with_sequences(1), place.weights_gib))
    return best.holding(most if given("engine.rollout.max_num_seqs") else 1), 0


def _places(
    model: ModelConfig,
    cluster: ClusterConfig,
    given: Given,
    sampler: VllmConfig,
    learner: DeepSpeedConfig,
    rows: int,
    turns: bool,
) -> Iterator[Place]:
    """Every way that what is given allows, cheapest first."""
    sizes = widths(model, cluster, given, sampler, "engine.rollout.tensor_parallel_size")
    parts = {size: tuple(sampler_memory(model, size, rows).values()) for size in sizes}
    budget = max(learner.token_budget if given("engine.learner.token_budget") else 0, rows)
    for colocate, in_turn, learners in _splits(cluster, given, turns):
        cards = cluster.gpus if colocate else cluster.gpus - learners
        for sharded in _shardings(model, cluster, given, learner, learners, "engine.learner."):
            if in_turn and sharded.zero_stage == 1:  # which cannot leave its GPU in bfloat16
                continue
            engine = replace(sharded, token_budget=budget)
            layout = rank_layout(engine, learners, cluster, rows)
            gib = training_memory(model, layout).total / GIB
            for size, (weights, sequence) in parts.items():
                workers = cluster.rollout_workers if given("cluster.rollout_workers") else cards // size
                if 0 < workers * size <= cards:
                    tp = replace(sampler, tensor_parallel_size=size)
                    yield Place(colocate, in_turn, learners, workers, engine, tp, gib, weights, sequence)


def _splits(cluster: ClusterConfig, given: Given, turns: bool) -> Iterator[tuple[bool, bool, int]]:
    """(Whether the roles share their GPUs, whether they take turns on them, learners)."""
    fixed = cluster.learner_workers if given("cluster.learner_workers") else None
    if cluster.colocate or not given("cluster.colocate"):
        for in_turn in (cluster.turns,) if given("cluster.turns") else (False, True) if turns else (False,):
            yield True, in_turn, fixed or cluster.gpus
    if cluster.colocate and given("cluster.colocate"):
        return
    unit = cluster.gpus_per_node if cluster.num_nodes > 1 else 1
    for share in SHARES if fixed is None else (1.0,):
        learners = fixed or int(cluster.gpus * share) // unit * unit
        if 0 < learners < cluster.gpus:
            yield False, False, learners


def _shardings(
    model: ModelConfig, cluster: ClusterConfig, given: Given, engine: DeepSpeedConfig, ranks: int, prefix: str
) -> Iterator[DeepSpeedConfig]:
    """ZeRO stages with sizes of expert parallelism; rows are spread over ranks of a node only if none of them does.

    Under ZeRO-3 a layer of widely spread experts is less to gather.
    """
    sizes = [size for size in divisors(gcd(ranks, _spread_experts(model))) if size <= EXPERT_RANKS]
    inside = max(size for size in sizes if size <= cluster.gpus_per_node)
    sharing = [n for n in divisors(gcd(ranks, model.num_attention_heads)) if n <= cluster.gpus_per_node]
    for spread in (engine.sp_size,) if given(f"{prefix}sp_size") else sharing:
        for zero in (engine.zero_stage,) if given(f"{prefix}zero_stage") else (1, 2, 3):
            wide = [size for size in sizes if size >= inside]
            for size in (engine.ep_size,) if given(f"{prefix}ep_size") else wide[-1:] if zero == 3 else wide:
                yield replace(engine, zero_stage=zero, ep_size=size, sp_size=spread)


def _spread_experts(model: ModelConfig) -> int:
    """Routed experts that can be spread over ranks; 1: none."""
    if not model.num_moe_layers:
        return 1
    if not model.model_type.startswith("deepseek"):
        from framework.engines.expert_parallel import has_expert_parallelism

        if not has_expert_parallelism(model):
            return 1
    return model.n_routed_experts


def widths(model: ModelConfig, cluster: ClusterConfig, given: Given, sampler: VllmConfig, key: str) -> list[int]:
    """GPUs that a sampler may take: what divides the model's heads; beyond a node, whole nodes."""
    if given(key):
        return [sampler.tensor_parallel_size]
    most = cluster.gpus // cluster.rollout_workers if given("cluster.rollout_workers") else cluster.gpus
    node = cluster.gpus_per_node
    sizes = (size for size in divisors(cluster.gpus) if size <= max(most, 1))
    return [size for size in sizes if model.tensor_parallel(size) == size and (size <= node or size % node == 0)]


def _longer(model: ModelConfig, cluster: ClusterConfig, place: Place, rows: int, limit: float) -> Place:
    """Micro-batches of several rows, as far as they fit."""
    while 2 * place.learner.token_budget <= MICRO_TOKENS:
        engine = replace(place.learner, token_budget=2 * place.learner.token_budget)
        layout = rank_layout(engine, place.learners, cluster, rows)
        longer = replace(place, learner=engine, learner_gib=training_memory(model, layout).total / GIB)
        if longer.needed > limit:
            break
        place = longer
    return place


def place_trainer(
    model: ModelConfig,
    cluster: ClusterConfig,
    given: Given,
    engine: DeepSpeedConfig,
    ranks: int,
    rows: tuple[int, ...],
) -> Trainer:
    """Return how a learner alone is sharded for the longest of `rows` (tokens) that fit, or needs least if none do."""

    def needs(tried: DeepSpeedConfig, longest: int) -> float:
        return training_memory(model, rank_layout(tried, ranks, cluster, longest)).total / GIB

    fixed, ways = given("engine.token_budget"), list(_shardings(model, cluster, given, engine, ranks, "engine."))
    for longest in sorted(rows, reverse=True):
        for share in (FREE, 1.0):
            limit = share * cluster.gpu_memory_gib
            for way in ways:
                found = replace(way, token_budget=max(engine.token_budget if fixed else 0, longest))
                if needs(found, longest) > limit:
                    continue
                while not fixed and 2 * found.token_budget <= MICRO_TOKENS // 2:
                    longer = replace(found, token_budget=2 * found.token_budget)
                    if needs(longer, longest) > limit:
                        break
                    found = longer
                return Trainer(found, needs(found, longest), longest)
    shortest = min(rows)
    best = min((replace(way, token_budget=shortest) for way in ways), key=lambda tried: needs(tried, shortest))
    return Trainer(best, needs(best, shortest), 0)


def _sharding(engine: DeepSpeedConfig) -> str:
    spread = f", rows over {engine.sp_size}" if engine.sp_size > 1 else ""
    return f"ZeRO-{engine.zero_stage}, EP {engine.ep_size}{spread}"
