"""What a run would do and cost, as text. A stage that can tell has `estimate(cluster) -> StageEstimate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from framework.artifacts import Artifact
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Edge, Graph, Node, OutputRef


@dataclass(frozen=True)
class RoleEstimate:
    """One role of a stage: how many workers on how many GPUs, and what fills each GPU (or process)."""

    name: str
    workers: int
    gpus: int = 0  # all workers together; 0: CPU
    memory_gib: Mapping[str, float] = field(default_factory=dict)  # part, e.g. "weights" -> GiB per GPU
    # The same for other ways to shard: row -> column -> part -> GiB; and which of them is `memory_gib`.
    choices: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    chosen: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class StageEstimate:
    """What a stage expects of itself before it has run."""

    batch: Mapping[str, str | int | float] = field(default_factory=dict)  # batch maths, in the order to read it
    roles: tuple[RoleEstimate, ...] = ()
    hours: float = 0.0  # wall clock
    assumptions: tuple[str, ...] = ()  # a sentence each, with its source


@runtime_checkable
class Estimates(Protocol):
    """A stage that can say what it will cost."""

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Return what the stage would use on `cluster`; starts nothing."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A stage that can try its input in seconds, before anything starts."""

    def look_ahead(self) -> str:
        """Return one line about what was tried, or nothing; raises UserError for input that can never work."""
        ...


@runtime_checkable
class Lacks(Protocol):
    """A stage that can be planned before all that it needs is given."""

    def lacks(self) -> UserError | None:
        """Return what must be given before a run starts, if anything."""
        ...


def check_complete(graph: Graph) -> None:
    """Raise UserError for the first thing that a run needs and that is not given."""
    for node in graph.order():
        if isinstance(node.stage, Lacks) and (lacking := node.stage.lacks()) is not None:
            raise lacking


def look_ahead(graph: Graph) -> list[str]:
    """Let every stage try its input; returns their lines."""
    found = (node.stage.look_ahead() for node in graph.order() if isinstance(node.stage, LooksAhead))
    return [line for line in found if line]


def describe_plan(graph: Graph, cluster: ClusterConfig, title: str) -> str:
    """Return the plan of a checked graph as text: stages, artifacts, batch maths, roles, memory, hours and cost."""
    lines, assumptions, hours = [title, _describe_cluster(cluster)], dict[str, None](), 0.0
    order = graph.order()
    for index, node in enumerate(order, start=1):
        lines += ["", f"{index}. {node.name}  ({type(node.stage).__name__})", *_describe_edges(node)]
        lacking = node.stage.lacks() if isinstance(node.stage, Lacks) else None
        lines += [f"   before a run: {lacking}"] if lacking is not None else []
        lines += [f"   {graph.notes[node.name]}"] if node.name in graph.notes else []
        if not isinstance(node.stage, Estimates):
            continue
        estimate = node.stage.estimate(cluster)
        lines += _describe_estimate(estimate, cluster)
        assumptions |= dict.fromkeys(estimate.assumptions)
        hours += estimate.hours
    lines += ["", f"total: {_duration(hours)}{_cost(hours, cluster)}"]
    if assumptions:
        lines += ["", "assumptions:", *(f"  - {assumption}" for assumption in assumptions)]
    return "\n".join(lines)


def _describe_cluster(cluster: ClusterConfig) -> str:
    where = (
        f"{cluster.num_nodes} x {cluster.gpus_per_node} GPUs of {cluster.gpu_memory_gib:g} GiB"
        if cluster.gpus
        else f"{cluster.cpus} CPU cores, no GPU"
    )
    sharing = ", taking turns on their GPUs" if cluster.turns else ", sharing their GPUs"
    shared = sharing if cluster.colocate and cluster.gpus else ""
    roles = f"{cluster.rollout_workers} rollout, {cluster.learner_workers} learner, {cluster.reward_workers} reward"
    return f"cluster: {where}; workers: {roles}{shared}"


def _describe_edges(node: Node) -> Iterable[str]:
    for name, edge in node.edges.items():
        yield f"   in   {name}: {_type_of(edge).__name__} from {_source(edge)}"
    for name, type_ in node.output_types.items():
        yield f"   out  {name}: {type_.__name__}"


def _describe_estimate(estimate: StageEstimate, cluster: ClusterConfig) -> Iterable[str]:
    for name, value in estimate.batch.items():
        yield f"   {name}: {value:,}" if isinstance(value, int | float) else f"   {name}: {value}"
    for role in estimate.roles:
        yield f"   {role.name}: {role.workers} workers on {f'{role.gpus} GPUs' if role.gpus else 'CPU'}"
        if role.memory_gib:
            yield f"     {_memory(role, cluster)}"
        yield from (f"     {line}" for line in _choices(role, cluster))
    if shared := shared_memory(estimate, cluster):
        parts = " + ".join(f"{name} {gib:.1f}" for name, gib in shared.items())
        yield f"   together on one GPU: {sum(shared.values()):.1f} GiB ({parts}){_fit(sum(shared.values()), cluster)}"
    if estimate.hours:
        yield f"   about {_duration(estimate.hours)}{_cost(estimate.hours, cluster)}"


def _memory(role: RoleEstimate, cluster: ClusterConfig) -> str:
    total = sum(role.memory_gib.values())
    scale, unit = (1, "GiB") if total >= 1 else (1024, "MiB")
    parts = ", ".join(f"{name} {gib * scale:.1f}" for name, gib in role.memory_gib.items())
    text = f"{total * scale:.1f} {unit} per {'GPU' if role.gpus else 'process'} ({parts})"
    return text + (_fit(total, cluster) if role.gpus else "")


def shared_memory(estimate: StageEstimate, cluster: ClusterConfig) -> dict[str, float]:
    """GiB of each role that has a share of the same GPU at the same time."""
    roles = [role for role in estimate.roles if role.gpus and role.memory_gib]
    if not cluster.colocate or cluster.turns or len(roles) < 2:
        return {}
    return {role.name: sum(role.memory_gib.values()) for role in roles}


def _fit(gib: float, cluster: ClusterConfig) -> str:
    return f"  DOES NOT FIT in {cluster.gpu_memory_gib:g} GiB" if gib > cluster.gpu_memory_gib else ""


def _choices(role: RoleEstimate, cluster: ClusterConfig) -> Iterable[str]:
    """A table of the role's choices, each cell its total and parts."""
    if not role.choices:
        return
    first = next(iter(role.choices.values()))
    totals = [sum(parts.values()) for row in role.choices.values() for parts in row.values()]
    scale, unit = (1, "GiB") if max(totals) >= 1 else (1024, "MiB")
    limit = cluster.gpu_memory_gib if role.gpus else float("inf")

    def cell(row: str, column: str, parts: Mapping[str, float]) -> str:
        total = sum(parts.values())
        mark = "*" if (row, column) == role.chosen else " "
        return f"{mark}{total * scale:,.1f}{'!' if total > limit else ''} = " + "+".join(
            f"{gib * scale:,.1f}" for gib in parts.values()
        )

    rows = [["", *(f" {column}" for column in first)]]
    rows += [[row, *(cell(row, *item) for item in columns.items())] for row, columns in role.choices.items()]
    widths = [max(len(texts[index]) for texts in rows) for index in range(len(rows[0]))]
    explained = f"{unit}: {' + '.join(next(iter(first.values())))}; * as configured"
    yield explained + (f", ! more than {limit:g}" if role.gpus else "")
    for texts in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()


def _type_of(edge: Edge) -> type[Artifact]:
    return edge.type if isinstance(edge, OutputRef) else type(edge)


def _source(edge: Edge) -> str:
    return f"{edge.node}.{edge.output}" if isinstance(edge, OutputRef) else str(edge.path)


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} min" if hours * 3600 >= 60 else f"{hours * 3600:.0f} s"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h ({hours / 24:,.0f} days)"


def _cost(hours: float, cluster: ClusterConfig) -> str:
    gpu_hours = hours * cluster.gpus
    if not gpu_hours:
        return ""
    return f", {gpu_hours:,.0f} GPU hours, ${gpu_hours * cluster.gpu_hour_usd:,.0f}"
