"""The roles of `framework bench driver`: actors that make responses up, look at them, and train nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framework.actors.pulse import beat
from framework.actors.rank_group import Rank
from framework.roles.batch_parts import At, filled
from framework.roles.learner import LearnerConfig
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import TrainResult
from framework.types import (
    Outline,
    Prompt,
    PublishedWeights,
    Response,
    RewardScore,
    SamplingParams,
    StepResult,
    TrainSample,
)


class _Worker:
    """What a pool asks of its actors."""

    def __init__(self) -> None:
        beat()

    def ping(self) -> str:
        """Answer."""
        return "pong"

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call `func` on this worker."""
        return func(self, *args, **kwargs)


class MadeUpRollouts(_Worker):
    """Every response is as long as it may be."""

    def __init__(self, text: int) -> None:
        super().__init__()
        self._text, self._version, self._rng = text, 0, np.random.default_rng(0)

    def update_weights(self, version: int, *shares: PublishedWeights) -> int:
        """Serve it."""
        self._version = version
        return version

    def generate_apart(
        self, prompt: Prompt, params: SamplingParams
    ) -> tuple[tuple[Prompt, tuple[Outline, ...]] | Response, ...]:
        """As `RolloutWorker.generate_apart`."""
        size, responses = params.max_tokens, list[Response]()
        for _ in range(params.n):
            ids = self._rng.integers(0, 100_000, size, np.int32)
            logprobs = np.full(size, -0.5, np.float32)
            versions = np.full(size, self._version, np.int32)
            responses.append(Response(ids, logprobs, versions, "length", "x" * (self._text * size)))
        return (prompt, tuple(response.outline for response in responses)), *responses


class MadeUpRewards(_Worker):
    """By the first token."""

    def score_stored(self, prompt: Prompt, votes_by: tuple[str, ...], *responses: Response) -> tuple[RewardScore, ...]:
        """1 for an odd one."""
        values = [float(response.token_ids[0] % 2) for response in responses]
        return tuple(RewardScore(value, {"odd": value}, extracted="1") for value in values)


class MadeUpRank(Rank):
    """Looks at the responses that it was sent."""

    def start(self, rank: int, world: int, host: str, port: int, config: LearnerConfig) -> None:
        """There is no group to join."""
        self._world = world

    def train(self, batch: TrainBatch, at: Sequence[At] = (), *responses: Response) -> TrainResult:
        """Look at each logprob of this rank's share; its tokens times the ranks are those of the batch, where alike."""
        batch = filled(batch, dict(zip(at, responses, strict=True)))
        trained = 0
        for minibatch in batch.minibatches:
            here = [sample for sample in minibatch.samples if isinstance(sample, TrainSample)]
            assert all(np.isfinite(sample.logprob) for sample in here)
            trained += sum(sample.length for sample in here)
        steps = tuple(
            StepResult(place + 1, {"trained": float(trained * self._world)}) for place in range(len(batch.minibatches))
        )
        return TrainResult(steps, None, 0.0, trained)

    def publish(self, version: int) -> tuple[PublishedWeights, int]:
        """A version without weights."""
        return PublishedWeights(version, (), np.zeros(1, np.uint8)), version

    def reset_reference(self) -> None:
        """There is none."""

    def save(self, directory: Path) -> None:
        """There is nothing."""

    def load(self, directory: Path) -> None:
        """There is nothing."""

    def export(self, directory: Path) -> None:
        """There is nothing."""
