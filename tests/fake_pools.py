"""Fakes of the sampling side's worker pools: answers at the next poll, deaths on demand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from framework.actors.pool import Done, Lost
from framework.stages.workers import SamplingPools
from framework.types import Prompt, Response, ResponseGroup, RewardScore, SamplingParams


class FakePool:
    """One worker that answers at the next poll, by the function of a call's name; a poll in `dies_at` loses all."""

    def __init__(self, dies_at: Sequence[int] = (), **verbs: Callable[..., object]) -> None:
        self.verbs, self.called = verbs, deque[tuple[str, tuple[object, ...], object]]()
        self.dies_at, self.polls = set(dies_at), 0

    def ready(self) -> list[int]:
        return [0]

    def load(self, worker: int) -> int:
        return len(self.called)

    def call(self, worker: int, verb: str, *arguments: object, tag: object) -> None:
        self.called.append((verb, arguments, tag))

    def poll(self, timeout_s: float) -> list[Done | Lost]:
        self.polls += bool(self.called)
        called, self.called = self.called, deque()
        if called and self.polls in self.dies_at:
            return [Lost(0, tag) for _, _, tag in called]  # type: ignore[arg-type]
        return [Done(0, tag, self.verbs[verb](*arguments)) for verb, arguments, tag in called]  # type: ignore[arg-type]


def respond(prompt: Prompt, params: SamplingParams) -> ResponseGroup:
    """Responses that spell the seed they were sampled with."""
    assert params.seed is not None
    texts = [f"{prompt.id} {params.seed + place}" for place in range(params.n)]
    return ResponseGroup(prompt, tuple(_response(text) for text in texts))


def _response(text: str) -> Response:
    ids = np.array([len(text), 2], np.int32)
    return Response(ids, np.zeros(2, np.float32), np.zeros(2, np.int32), "stop", text)


def score(group: ResponseGroup) -> tuple[RewardScore, ...]:
    """1 for a seed that is odd."""
    values = [float(int(response.text.split()[-1]) % 2) for response in group.responses]
    return tuple(RewardScore(value, {"odd": value}, extracted=str(value)) for value in values)


def judge(group: ResponseGroup, names: tuple[str, ...]) -> tuple[RewardScore, ...]:
    """As `score`, each response a vote of its own."""
    return tuple(replace(found, vote=place) for place, found in enumerate(score(group)))


def fake_pools(rollout_dies_at: Sequence[int] = (), reward_dies_at: Sequence[int] = ()) -> SamplingPools:
    """Both pools."""
    rollout = FakePool(rollout_dies_at, generate=respond)
    reward = FakePool(reward_dies_at, score=score, judge=judge)
    return SamplingPools(rollout, reward)  # type: ignore[arg-type]
