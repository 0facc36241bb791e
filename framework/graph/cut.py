"""A part of a job's graph: up to a node, or from one on with a checkpoint of one's own in place of what leads to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from framework.artifacts import MANIFEST, Artifact, Checkpoint, RewardCheckpoint
from framework.errors import UserError, did_you_mean
from framework.graph.nodes import EdgeError, Graph, Node, OutputRef

CHECKPOINTS = (Checkpoint, RewardCheckpoint)


def up_to(graph: Graph, name: str) -> Graph:
    """Return the graph without what comes after a node in its order; raises UserError for an unknown one."""
    order = [node.name for node in graph.order()]
    return _with(graph, order[: order.index(_known(graph, name, "until")) + 1])


def from_node(graph: Graph, name: str, base: Path | None) -> Graph:
    """Return the graph that begins at a node with `base` as the checkpoint that it would be given by another node.

    Nodes before it are left out, but for those that it, or what comes after it, needs besides: its prompts for
    instance. Raises UserError for an unknown node, one that starts from no checkpoint, or a base of another kind.
    """
    node, order = graph.nodes[_known(graph, name, "from")], [node.name for node in graph.order()]
    if base is None:
        raise UserError("base", None, f"must name the checkpoint that from={name} starts with")
    wanted = _checkpoint_edges(node)
    if not wanted:
        able = [other for other in order if _checkpoint_edges(graph.nodes[other])]
        raise UserError("from", name, f"starts from no checkpoint; nodes that do: {', '.join(able)}")
    edge = "base" if "base" in wanted else wanted[0]
    replaced = node.edges[edge]
    if isinstance(replaced, OutputRef):
        given = _given(f"{name}.{edge}", base, replaced.type)
        swapped = {
            key: replace(other, edges={k: given if e == replaced else e for k, e in other.edges.items()})
            for key, other in graph.nodes.items()
        }
        graph = Graph(swapped, graph.notes)
    later = order[order.index(name) :]
    needed = {name}
    for other in later:  # what has no way from the node does not begin at it
        if needed & set(graph.nodes[other].upstream()):
            needed.add(other)
    return _with(graph, _ancestors(graph, needed))


def _known(graph: Graph, name: str, key: str) -> str:
    if name not in graph.nodes:
        known = ", ".join(node.name for node in graph.order())
        raise UserError(key, name, f"{did_you_mean(name, graph.nodes)}nodes of this job: {known}")
    return name


def _checkpoint_edges(node: Node) -> list[str]:
    types = {key: edge.type if isinstance(edge, OutputRef) else type(edge) for key, edge in node.edges.items()}
    return [key for key, type_ in types.items() if issubclass(type_, CHECKPOINTS)]


def _given(edge: str, base: Path, type_: type[Artifact]) -> Artifact:
    """The user's directory as the artifact that an edge carries; raises EdgeError if it says to be of another kind."""
    found = type_(base.absolute())
    if (base / MANIFEST).is_file() and (kind := found.manifest().type) != type_.__name__:
        raise EdgeError(edge, f"{kind} from base={base}", type_.__name__)
    return found


def _ancestors(graph: Graph, names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.nodes[name].upstream()
    return found


def _with(graph: Graph, names: Iterable[str]) -> Graph:
    kept = set(names)
    return Graph(
        {name: node for name, node in graph.nodes.items() if name in kept},
        {name: note for name, note in graph.notes.items() if name in kept},
    )
