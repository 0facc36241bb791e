"""How published weights get to the samplers: what follows from where the roles are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from framework.engines.weights import update_limit
from framework.graph.cluster import ClusterConfig

Transport = Literal["memory", "network"]

_DESCRIPTIONS: dict[Transport, str] = {
    "memory": "stay in the node's memory, where every worker of a sampler maps them",
    "network": "are mapped by samplers on their learner's node; others fetch the slices that they load, over gloo",
}


def transport_of(cluster: ClusterConfig) -> Transport:
    """Return the one that the cluster's nodes ask for."""
    return "network" if cluster.num_nodes > 1 else "memory"


def describe(transport: Transport) -> str:
    """Go on after "weights"."""
    return _DESCRIPTIONS[transport]


def least_seconds(checkpoint: Path) -> float:
    """Return how long publishing or loading a model of a checkpoint's size may take at least, before anyone is late.

    Twice what each step of an update is given, so that whoever takes it can say first who keeps it waiting.
    """
    return 2 * update_limit(sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")))
