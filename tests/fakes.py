"""Fakes of the roles in framework.protocols: loop logic runs on them in milliseconds."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from framework.engines.weights import common_version
from framework.errors import UserError
from framework.types import (
    Float32,
    Minibatch,
    Prompt,
    PublishedWeights,
    Response,
    ResponseGroup,
    RewardScore,
    SamplingParams,
    StepResult,
    TrainSample,
    WeightTensor,
)


class FakeScorer:
    """Scores with one function, named "reward"; keeps the groups that it was given."""

    def __init__(self, reward: Callable[[Prompt, Response], float]) -> None:
        self._reward = reward
        self.groups: list[ResponseGroup] = []

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        self.groups.append(group)
        return tuple(self._score_one(group.prompt, response) for response in group.responses)

    def _score_one(self, prompt: Prompt, response: Response) -> RewardScore:
        try:
            value = float(self._reward(prompt, response))
        except Exception as error:
            return RewardScore(0.0, error=f"reward raised {type(error).__name__}: {error}")
        return RewardScore(value, {"reward": value}) if math.isfinite(value) else RewardScore(0.0, error=f"got {value}")


class FakeLearner:
    """One rank that learns a single logit: logprobs are those of a coin, a step moves it by the mean advantage."""

    def __init__(self, keep_versions: int = 1) -> None:
        self.logit, self.steps, self.version = 0.0, 0, 0
        self._keep = keep_versions
        self._kept = {0: 0.0}

    def train_minibatch(self, minibatch: Minibatch) -> StepResult:
        tokens = float(sum(len(sample.response_ids) for sample in minibatch.samples))
        gradient = sum(sample.advantage for sample in minibatch.samples) / minibatch.n_responses
        self.logit += 0.1 * gradient
        self.steps += 1
        metrics = {"loss": -gradient, "grad_norm": abs(gradient), "lr": 0.1, "tokens": tokens}
        return StepResult(self.steps, metrics, np.full((1, 2), tokens / 2))

    def logprobs(self, samples: Sequence[TrainSample], version: int | None = None) -> list[Float32]:
        if version is not None and version not in self._kept:
            raise UserError("policy version", version, f"kept are {sorted(self._kept)}")
        logit = self.logit if version is None else self._kept[version]
        logprobs = np.log([1 / (1 + math.exp(logit)), 1 / (1 + math.exp(-logit))])
        return [logprobs[sample.response_ids % 2].astype(np.float32) for sample in samples]

    def has_version(self, version: int) -> bool:
        return version in self._kept

    def publish(self, version: int | None = None) -> PublishedWeights:
        self.version = self.version + 1 if version is None else version
        self._kept = {v: logit for v, logit in self._kept.items() if v >= self.version - self._keep}
        self._kept[self.version] = self.logit
        buffer = np.frombuffer(np.float32(self.logit).tobytes(), np.uint8)
        return PublishedWeights(self.version, (WeightTensor("logit", "float32", (), 0),), buffer)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        kept = {str(version): logit for version, logit in self._kept.items()}
        state = {"logit": self.logit, "steps": self.steps, "version": self.version, "kept": kept}
        (directory / "engine.json").write_text(json.dumps(state))

    def load(self, directory: Path) -> None:
        file = directory / "engine.json"
        try:
            state = json.loads(file.read_text())
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise UserError(str(file), str(error), "must be what save wrote") from None
        self.logit, self.steps, self.version = state["logit"], state["steps"], state["version"]
        self._kept = {int(version): logit for version, logit in state["kept"].items()}

    def export(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text("{}")


class FakeSampler:
    """Samples uniformly from `vocab` tokens, of which 0 ends a response; the same seed gives the same responses.

    The event loop runs between tokens, so that updates arrive in the middle of a response, as with the real engine.
    """

    def __init__(self, max_model_len: int = 512, vocab: int = 64, version: int = 0) -> None:
        self.version, self.max_model_len, self.vocab = version, max_model_len, vocab
        self.prompts: list[Prompt] = []

    async def generate(self, prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        self.prompts.append(prompt)
        if not 0 < len(prompt.token_ids) <= self.max_model_len - params.max_tokens:
            room = self.max_model_len - params.max_tokens
            raise UserError(f"prompt {prompt.id}", f"{len(prompt.token_ids)} tokens", f"must be 1 to {room} tokens")
        rng = random.Random(f"{prompt.id} {params.seed}")
        return ResponseGroup(prompt, tuple([await self._respond(rng, params.max_tokens) for _ in range(params.n)]))

    async def update_weights(self, published: Sequence[PublishedWeights]) -> int:
        await asyncio.sleep(0)
        self.version = common_version(published)
        return self.version

    async def _respond(self, rng: random.Random, max_tokens: int) -> Response:
        token_ids, versions = list[int](), list[int]()
        while len(token_ids) < max_tokens and (not token_ids or token_ids[-1] != 0):
            await asyncio.sleep(0)
            token_ids.append(rng.randrange(self.vocab))
            versions.append(self.version)
        return Response(
            np.asarray(token_ids, np.int32),
            np.full(len(token_ids), -math.log(self.vocab), np.float32),
            np.asarray(versions, np.int32),
            "stop" if token_ids[-1] == 0 else "length",
            " ".join(map(str, token_ids)),
        )
