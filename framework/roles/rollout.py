"""The rollout worker: vLLM behind an asynchronous Ray actor."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from framework.actors.pulse import beat
from framework.engines.vllm_engine import SamplerStats, VllmConfig, VllmSampler
from framework.roles.placement import Seat
from framework.types import Outline, Prompt, PublishedWeights, Response, ResponseGroup, SamplingParams

P = ParamSpec("P")
T = TypeVar("T")


class RolloutWorker:
    """Samples response groups and takes new weights while it does.

    A plain class: wrap it with `ray.remote`, `max_restarts=-1` and a `max_concurrency` above the groups in flight. A
    worker whose engine has failed ends its process, so that Ray replaces it: it never answers with weights in doubt.
    """

    def __init__(self, config: VllmConfig, seat: Seat | None = None, turns: bool = False) -> None:
        """`turns`: the GPUs are the learner's too, and this worker's only from an update to the next `sleep`."""
        self._turns, self._checkpoint = turns, Path()
        self._sampler = VllmSampler(config, None if seat is None else seat.take(), sleeps=turns)
        beat(turns=lambda: self._sampler.turns)

    async def start(self, checkpoint: Path) -> None:
        """Load the first weights and warm up; raises UserError for a damaged checkpoint."""
        self._checkpoint = checkpoint
        if not self._turns:  # else a worker that starts, or starts again, may find the learner on its GPUs
            await self._sampler.start(checkpoint)

    async def generate(self, prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        """Sample G responses; raises UserError if they may not fit the context, RunFailed if the engine is dead."""
        return await self._sampler.generate(prompt, params)

    async def generate_apart(
        self, prompt: Prompt, params: SamplingParams
    ) -> tuple[tuple[Prompt, tuple[Outline, ...]] | Response | None, ...]:
        """As `generate`, of 1 + n values: what is to be known of the responses, then each; None where none came.

        Called with `num_returns`, so that each stays in this machine's object store until somebody asks for it.
        """
        group = await self._sampler.generate(prompt, params)
        outlines = tuple(response.outline for response in group.responses)
        return (prompt, outlines), *group.responses, *[None] * (params.n - len(group.responses))

    async def update_weights(self, version: int, *shares: PublishedWeights) -> int:
        """Load every learner rank's share of policy `version` and acknowledge it by returning it."""
        if self._turns and self._sampler.version < 0:
            await self._sampler.start(self._checkpoint, weights_follow=True)
        served = await self._sampler.update_weights(shares)
        assert served == version, f"asked for version {version}, loaded {served}"
        return served

    async def sleep(self) -> None:
        """Leave the GPUs to the learner until the next update."""
        if self._sampler.version >= 0:
            await self._sampler.sleep()

    async def stats(self) -> SamplerStats:
        """Totals since the start."""
        return self._sampler.stats()

    async def ping(self) -> str:
        """Answer a health check; a worker with a dead engine ends instead, and Ray starts another."""
        if self._sampler.version >= 0 and not self._sampler.healthy:
            os._exit(1)
        return "pong"

    async def apply(self, func: Callable[Concatenate[RolloutWorker, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `func` on this worker (what Ray's FaultTolerantActorManager asks for)."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result  # the manager's ping gives a coroutine
