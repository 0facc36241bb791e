"""A job as a graph: nodes are stages, edges carry artifacts, and every edge is checked before anything starts.

graph = Graph()
collect = graph.add("collect", Collect(...))
pretrain = graph.add("pretrain", Pretrain(...), corpus=collect.out("text"), tokenizer=collect.out("tokenizer"))
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints, runtime_checkable

from framework.artifacts import Artifact
from framework.errors import Stopped, UserError, did_you_mean
from framework.graph.cluster import ClusterConfig
from framework.protocols import Tracker

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


@dataclass(frozen=True)
class Runtime:
    """What the runner hands to a stage besides its inputs."""

    node: str
    work_dir: Path  # the stage's own: engine state to resume from; survives a kill
    out_dir: Path  # where the outputs are built; see artifact_dir
    seed: int
    cluster: ClusterConfig
    tracker: Tracker
    should_stop: Callable[[], bool]  # true after SIGINT or SIGTERM; then save and call stop()
    allow_s: Callable[[float], None] = lambda seconds: None  # a checkpoint at a stop takes so long: wait for it

    def artifact_dir(self, output: str) -> Path:
        """Return the fresh, existing directory in which to build the artifact of field `output` of Out."""
        directory = self.out_dir / output
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def stop_if_asked(self) -> None:
        """Raise Stopped if the run was asked to stop; call it where everything needed to resume is saved."""
        if self.should_stop():
            raise Stopped(f"{self.node}: stopped; the same command resumes it")


class Stage(Protocol[In_contra, Out_co]):
    """A frozen dataclass (its fields are its configuration) that turns artifacts into artifacts.

    A class with `keeps_work = False` wants its work_dir removed once its outputs are whole.

    In and Out are frozen dataclasses whose fields are Artifact types; an In field `X | None = None` may stay
    unconnected.
    """

    def run(self, inputs: In_contra, runtime: Runtime) -> Out_co:
        """Do the work. Called again with the same work_dir after a kill or a stop."""
        ...


@runtime_checkable
class NamesFiles(Protocol):
    """Settings that name files otherwise than by a `Path`: as a text, a glob, a folder. Their contents count too."""

    def named_files(self) -> tuple[Path, ...]:
        """Return the files that are read; raises UserError if they are not there."""
        ...


@dataclass(frozen=True)
class OutputRef:
    """One output of a node, to be given to another as input."""

    node: str
    output: str
    type: type[Artifact]


Edge = OutputRef | Artifact  # an Artifact stands for a directory that exists already


@dataclass(frozen=True)
class Node:
    """A stage in its place in the graph."""

    name: str
    stage: Stage[Any, Any]
    edges: Mapping[str, Edge]
    inputs_type: type[Any]
    outputs_type: type[Any]
    output_types: Mapping[str, type[Artifact]]

    def out(self, output: str) -> OutputRef:
        """Return the handle of one output; raises UserError if the stage has no such output."""
        if output not in self.output_types:
            known = did_you_mean(output, self.output_types) + f"outputs: {', '.join(self.output_types)}"
            raise UserError(f"{self.name}.{output}", "no such output", known)
        return OutputRef(self.name, output, self.output_types[output])

    def upstream(self) -> Iterator[str]:
        """Names of the nodes that this one waits for."""
        return (edge.node for edge in self.edges.values() if isinstance(edge, OutputRef))


@dataclass
class Graph:
    """Nodes by name. `add` checks each edge as it is made, `order` the graph as a whole."""

    nodes: dict[str, Node] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # node name -> a line that its plan shows

    def add(self, name: str, stage: Stage[Any, Any], **edges: Edge) -> Node:
        """Add a stage; raises UserError on a duplicate name or an edge of the wrong name or type."""
        if name in self.nodes:
            raise UserError(f"node {name}", "added twice", "each node of a graph needs a name of its own")
        inputs_type, outputs_type = _signature(name, stage)
        _check_edges(name, inputs_type, edges)
        outputs = {key: type_ for key, (type_, _) in _artifact_fields(outputs_type).items()}
        node = Node(name, stage, dict(edges), inputs_type, outputs_type, outputs)
        self.nodes[name] = node
        return node

    def order(self) -> tuple[Node, ...]:
        """Return the nodes so that each comes after what it waits for; raises UserError on a cycle or unknown node."""
        ordered: dict[str, Node] = {}
        path: list[str] = []

        def visit(name: str) -> None:
            if name in ordered:
                return
            if name in path:
                raise UserError("graph", " -> ".join([*path[path.index(name) :], name]), "must have no cycle")
            if name not in self.nodes:
                raise UserError(f"{path[-1]}", f"an edge from {name}", f"nodes: {', '.join(self.nodes)}")
            path.append(name)
            for other in self.nodes[name].upstream():
                visit(other)
            path.pop()
            ordered[name] = self.nodes[name]

        for name in self.nodes:
            visit(name)
        return tuple(ordered.values())

    def check(self) -> None:
        """Raise UserError if the graph can't run: a cycle, or an existing artifact that is missing or damaged."""
        for node in self.order():
            for edge in node.edges.values():
                if isinstance(edge, Artifact):
                    edge.check()


def _signature(name: str, stage: Stage[Any, Any]) -> tuple[type[Any], type[Any]]:
    if not dataclasses.is_dataclass(stage) or not callable(getattr(stage, "run", None)):
        raise UserError(f"node {name}", type(stage).__name__, "a stage is a frozen dataclass with run(inputs, runtime)")
    hints = get_type_hints(stage.run)
    inputs_type, outputs_type = hints.get("inputs"), hints.get("return")
    for kind, type_ in (("inputs", inputs_type), ("return", outputs_type)):
        if not (isinstance(type_, type) and dataclasses.is_dataclass(type_)):
            raise UserError(f"{type(stage).__name__}.run", type_, f"annotate `{kind}` with a dataclass of artifacts")
    assert inputs_type is not None
    assert outputs_type is not None
    return inputs_type, outputs_type


def _artifact_fields(cls: type[Any]) -> dict[str, tuple[type[Artifact], bool]]:
    """Return field name -> (artifact type, may stay unconnected)."""
    hints, found = get_type_hints(cls), {}
    for item in dataclasses.fields(cls):
        hint, optional = hints[item.name], False
        if get_origin(hint) in (Union, types.UnionType):
            arms = [arm for arm in get_args(hint) if arm is not type(None)]
            hint, optional = arms[0], len(arms) < len(get_args(hint))
        if not (isinstance(hint, type) and issubclass(hint, Artifact)):
            raise UserError(f"{cls.__name__}.{item.name}", str(hint), "must be an Artifact type")
        found[item.name] = (hint, optional)
    return found


def _check_edges(name: str, inputs_type: type[Any], edges: Mapping[str, Edge]) -> None:
    wanted = _artifact_fields(inputs_type)
    for key, edge in edges.items():
        if key not in wanted:
            inputs = did_you_mean(key, wanted) + f"inputs: {', '.join(wanted) or 'none'}"
            raise UserError(f"{name}.{key}", "no such input", inputs)
        got = edge.type if isinstance(edge, OutputRef) else type(edge)
        if not issubclass(got, wanted[key][0]):
            source = f"{edge.node}.{edge.output}" if isinstance(edge, OutputRef) else str(edge.path)
            raise EdgeError(f"{name}.{key}", f"{got.__name__} from {source}", wanted[key][0].__name__)
    for key, (type_, optional) in wanted.items():
        if key not in edges and not optional:
            raise UserError(f"{name}.{key}", "no edge", f"wants {type_.__name__}")


class EdgeError(UserError):
    """An edge carries another type of artifact than its stage wants."""

    def __str__(self) -> str:
        return f"{self.where} wants {self.allowed}, got {self.value}"
