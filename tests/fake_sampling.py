"""A stand-in for `stages.sampling.Sampling`: a function answers for a checkpoint; groups are kept for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from framework.data.chat_template import TemplateConfig
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.rewards.base import RewardConfig, score_response
from framework.stages import read_samples, sampled_chats
from framework.stages.eval_numbers import JudgedGroup
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import SamplingConfig
from framework.types import Prompt, Response, ResponseGroup, ScoredGroup
from tests.fake_clients import RecordingTracker

Answer = Callable[[Path, Prompt, int], str]  # checkpoint, prompt, place among its responses -> text


class Killed(BaseException):
    """The process dies here."""


@dataclass
class FakeSampling:
    """As `Sampling`; the answers come from `answer`, and the process is killed before group number `dies_at`."""

    config: SamplingConfig
    engine: VllmConfig
    rewards: RewardConfig
    template: TemplateConfig = TemplateConfig()

    answer: ClassVar[Answer]
    opened: ClassVar[str] = ""
    dies_at: ClassVar[int | None] = None
    sampled: ClassVar[list[str]] = []

    def run(
        self, checkpoint: Path, prompts: Sequence[Prompt], runtime: Runtime, kept: SampleFile
    ) -> Iterator[JudgedGroup]:
        prompts = [replace(prompt, opened=self.opened, token_ids=(1,)) for prompt in prompts]
        before = {group.scored.group.prompt.id: group for group in kept.groups(prompts)}
        yield from before.values()
        for prompt in reversed(prompts):  # nobody may count on the order
            if prompt.id in before:
                continue
            if len(self.sampled) == self.dies_at:
                raise Killed
            self.sampled.append(prompt.id)
            group = JudgedGroup(self._scored(checkpoint, prompt), ())
            kept.append(group)
            yield group

    def _scored(self, checkpoint: Path, prompt: Prompt) -> ScoredGroup:
        ids = np.zeros(1, np.int32)
        responses = tuple(
            Response(ids, ids.astype(np.float32), ids, "stop", type(self).answer(checkpoint, prompt, place))
            for place in range(self.config.n)
        )
        scores = tuple(score_response(self.rewards.components, prompt, response) for response in responses)
        return ScoredGroup(ResponseGroup(prompt, responses), scores)


def fake_sampling(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, opened: str = "", dies_at: int | None = None
) -> type[FakeSampling]:
    """Put the fake in the place of `Sampling`; `sampled` lists the ids that were sampled, in that order."""
    fake = type(
        "Fake", (FakeSampling,), {"answer": staticmethod(answer), "opened": opened, "dies_at": dies_at, "sampled": []}
    )
    for module in (sampled_chats, read_samples):
        monkeypatch.setattr(module, "Sampling", fake)
    return fake


@dataclass
class FakeRun:
    """Directories of one stage: `runtime()` again is the same command after a kill."""

    directory: Path
    node: str = "node"
    seed: int = 0
    attempts: int = field(default=0, init=False)

    def runtime(self, **more: Any) -> Runtime:
        self.attempts += 1
        work, out = self.directory / "work", self.directory / f"out-{self.attempts}"
        work.mkdir(parents=True, exist_ok=True)
        return Runtime(self.node, work, out, self.seed, ClusterConfig(), RecordingTracker(), lambda: False, **more)
