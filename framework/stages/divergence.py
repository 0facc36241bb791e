"""How far a policy has gone from the model it began as: the KL divergence of its own responses, in nats a response.

Dimensions: R tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.engines.cpu.environment import actor_options
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.graph.nodes import Runtime
from framework.objectives.grpo import Grpo
from framework.stages.eval_numbers import JudgedGroup
from framework.types import Float32, TrainSample

KL = "kl"  # beside the reward components of a response


@dataclass(frozen=True)
class Divergence:
    """`with_divergence` as a part of the stage that asks for it; `engine` reads both models."""

    engine: DeepSpeedConfig

    def __call__(
        self, groups: Sequence[JudgedGroup], policy: Path, reference: Path, temperature: float, runtime: Runtime
    ) -> list[JudgedGroup]:
        """Return the groups with their divergence; raises what the learner's ranks raise."""
        return with_divergence(groups, policy, reference, temperature, self.engine, runtime)


def with_divergence(
    groups: Sequence[JudgedGroup],
    policy: Path,
    reference: Path,
    temperature: float,
    engine: DeepSpeedConfig,
    runtime: Runtime,
) -> list[JudgedGroup]:
    """Return the groups with log pi - log pi_ref of each response, summed over its tokens, as a component `kl`.

    Its mean over responses that `policy` sampled is an estimate of KL(pi || pi_ref) without bias, single values of
    which may be negative. Both models read all responses with the learner's own ranks, one model after the other.
    """
    samples = [sample for group in groups for sample in _samples(group)]
    ours, theirs = (_logprobs(model, samples, temperature, engine, runtime) for model in (policy, reference))
    found = iter([float((own_R - other_R).sum()) for own_R, other_R in zip(ours, theirs, strict=True)])
    return [_with_component(group, found) for group in groups]


def _samples(group: JudgedGroup) -> list[TrainSample]:
    prompt = group.scored.group.prompt
    prompt_ids = np.asarray(prompt.token_ids, np.int32)
    zeros = [np.zeros(len(response.token_ids), np.float32) for response in group.scored.group.responses]
    return [
        TrainSample(prompt.id, prompt_ids, response.token_ids, 0.0, none_R, none_R.astype(np.int32))
        for response, none_R in zip(group.scored.group.responses, zeros, strict=True)
    ]


def _with_component(group: JudgedGroup, found: Any) -> JudgedGroup:
    scores = tuple(replace(score, components={**score.components, KL: next(found)}) for score in group.scored.scores)
    return replace(group, scored=replace(group.scored, scores=scores))


def _logprobs(
    model: Path, samples: Sequence[TrainSample], temperature: float, engine: DeepSpeedConfig, runtime: Runtime
) -> list[Float32]:
    from framework.roles.learner import LearnerConfig
    from framework.roles.learner_group import LearnerGroup

    cluster = runtime.cluster
    longest = max(len(sample.prompt_ids) + len(sample.response_ids) for sample in samples)
    reading = replace(engine, keep_versions=0, mtp_coef=0.0, token_budget=max(engine.token_budget, longest))
    options = actor_options(cluster.learner_cpus, 1.0 if cluster.gpus else 0.0)
    ranks = cluster.learner_workers
    group = LearnerGroup(
        LearnerConfig(model, reading, Grpo(kl_coef=0.0), temperature),
        actor_options=[options] * ranks,
        deadlines=cluster.deadlines,
        should_stop=runtime.should_stop,
        allow_s=runtime.allow_s,
    )
    try:
        group.start()
        return group.logprobs(samples)
    finally:
        group.shutdown()
