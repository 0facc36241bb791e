"""A checkpoint that only the user has: a plan shows its place in the graph, a run needs it."""

from __future__ import annotations

from dataclasses import dataclass

from framework.artifacts import Checkpoint
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs


@dataclass(frozen=True)
class Given:
    """The checkpoint."""

    base: Checkpoint


@dataclass(frozen=True)
class GivenCheckpoint:
    """The stage that stands for a checkpoint which the setting `key` is to name."""

    key: str
    model: str

    def lacks(self) -> UserError:
        """What must be given before a run starts."""
        return UserError(self.key, None, f"must name a checkpoint of {self.model}: a directory")

    def run(self, inputs: NoInputs, runtime: Runtime) -> Given:
        """Raise UserError: a run does not get here."""
        raise self.lacks()
