"""The roles of the GRPO loop as small interfaces. Each has a fake in tests/fakes.py and one contract suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from framework.stored import Sample
from framework.types import (
    Float32,
    Minibatch,
    Prompt,
    PublishedWeights,
    ResponseGroup,
    RewardScore,
    SampleRow,
    SamplingParams,
    StepResult,
)


class Sampler(Protocol):
    """A rollout worker's engine: samples groups and takes new weights while it does."""

    async def generate(self, prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        """Sample G = params.n responses; raises UserError if the prompt leaves no room in the context."""
        ...

    async def update_weights(self, published: Sequence[PublishedWeights]) -> int:
        """Load every learner rank's share, drop the prefix cache, return the version now served."""
        ...


class Scorer(Protocol):
    """Scores whole groups; never raises for a bad verifier, reports it in RewardScore.error."""

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        """Return G scores."""
        ...


class Learner(Protocol):
    """One data-parallel rank of the policy's learner. All ranks are called with the same arguments."""

    def train_minibatch(self, minibatch: Minibatch) -> StepResult:
        """One optimizer step on the whole minibatch (each rank takes its share of the samples)."""
        ...

    def logprobs(self, samples: Sequence[Sample], version: int | None = None) -> list[Float32]:
        """Logprobs [R] of each sample's response under the current weights, or a kept older `version`."""
        ...

    def publish(self) -> PublishedWeights:
        """This rank's share of the weights as the next policy version."""
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's engine state (weights, optimizer, scheduler, RNG) for an exact resume."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; raises UserError on a missing or damaged file or another topology."""
        ...

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face checkpoint (safetensors, per-expert names, config)."""
        ...


class Tracker(Protocol):
    """Where a stage reports what it does; `step` counts whatever the stage counts (usually optimizer steps)."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record scalars of one step, e.g. {"reward/mean": 0.4}."""
        ...

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Record sampled responses of one step."""
        ...

    def expert_load(self, step: int, load_LE: npt.NDArray[np.float64]) -> None:
        """Record the tokens routed to each expert of each MoE layer."""
        ...

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Move the stage's progress bar (a plain line in a log)."""
        ...

    def rewind(self, step: int) -> None:
        """Withdraw what was recorded after `step`: a resume from there is about to repeat it."""
        ...
