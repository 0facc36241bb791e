"""A weight update, compared: do sampler and learner agree on every logprob, before it and after?

The learner takes steps on made-up advantages, so that the weights move; it publishes them as in a run, each sampler
loads them, samples anew, and the learner computes every sampled token's logprob under the weights that it published.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from framework.algorithms.mismatch import Mismatch, MismatchConfig, measure_mismatch
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.vllm_engine import VllmConfig
from framework.graph.cluster import ClusterConfig
from framework.objectives.grpo import Grpo
from framework.roles.learner import LearnerConfig
from framework.roles.learner_group import LearnerGroup
from framework.roles.placement import Placement, Seats, reserved
from framework.roles.rl_batch import TrainBatch
from framework.roles.rollout import RolloutWorker
from framework.roles.transports import describe as describe_transport
from framework.roles.transports import transport_of
from framework.types import Minibatch, Prompt, ResponseGroup, SamplingParams, TrainSample

PROMPTS, RESPONSES, TOKENS = 4, 4, 64  # G responses of so many tokens at most to so many prompts
LEARNING_RATE = 1e-4  # moves every logprob of a policy that was left stale by more than rounding does
WAIT_S = 1800.0


@dataclass(frozen=True)
class SyncCheck:
    """What one version's comparison found, all samplers together."""

    version: int  # 0: the base, as both loaded it
    tokens: int
    max_nats: float
    mean_nats: float
    moved_nats: (
        float  # mean change of the learner's logprobs of the last version's responses: what staleness would show
    )


def check_sync(
    base: Path, vocabulary: int, rollout: VllmConfig, learner: DeepSpeedConfig, cluster: ClusterConfig, updates: int = 2
) -> Iterator[SyncCheck]:
    """Yield the comparison of the base, then of each of `updates` published versions. Ray is running."""
    placement = Placement(cluster, cluster.learner_workers, cluster.rollout_workers, rollout.tensor_parallel_size)
    with reserved(placement) as seats:
        yield from _checked(base, vocabulary, rollout, learner, seats, updates)


def _checked(
    base: Path, vocabulary: int, rollout: VllmConfig, learner: DeepSpeedConfig, seats: Seats, updates: int
) -> Iterator[SyncCheck]:
    import ray

    sampler = ray.remote(RolloutWorker)
    samplers = [
        sampler.options(max_concurrency=100, **options).remote(rollout, seat)
        for options, seat in zip(seats.rollout_options(), seats.seats(), strict=True)
    ]
    options = seats.learner_options()
    engine = replace(learner, schedule=LrSchedule(lr=LEARNING_RATE, warmup_steps=0))
    transport = transport_of(seats.placement.cluster)
    print(f"weights {describe_transport(transport)}", flush=True)
    config = LearnerConfig(base, engine, Grpo(kl_coef=0.0), transport=transport)
    group = LearnerGroup(config, len(options), actor_options=options)
    try:
        starts = [worker.start.remote(base) for worker in samplers]
        group.start()
        ray.get(starts, timeout=WAIT_S)
        before: list[TrainSample] = []
        for version in range(updates + 1):
            if version:
                _step(group, before, version)
                shares = group.publish(version)
                ray.get([worker.update_weights.remote(version, *shares) for worker in samplers], timeout=WAIT_S)
            samples = _sampled(ray, samplers, vocabulary, rollout.max_model_len)
            found = measure_mismatch(samples, group.logprobs(samples), version)
            yield _compared(version, found, _moved(group, before))
            before = samples
    finally:
        group.shutdown()
        for worker in samplers:
            ray.kill(worker, no_restart=True)


def passes(found: SyncCheck, gate: MismatchConfig) -> bool:
    """Whether a run would go on with such a gap."""
    return (found.max_nats if gate.measure == "max_abs" else found.mean_nats) <= gate.stop_above


def describe(found: SyncCheck) -> str:
    """One line for people."""
    update = f"update {found.version} (moved the policy by {found.moved_nats:.1e})"
    what = update if found.version else "base, as loaded"
    return f"{what}: {found.tokens} tokens, max {found.max_nats:.1e} nats, mean {found.mean_nats:.1e} nats"


def _step(group: LearnerGroup, samples: Sequence[TrainSample], version: int) -> None:
    """One optimizer step on the samples; the ungated batch, as it is the gap that is looked for."""
    minibatch = Minibatch.of(samples)
    group.train(TrainBatch((minibatch,), (), version - 1, MismatchConfig(stop_above=float("inf"))))
    while group.poll() is None:
        time.sleep(0.05)


def _sampled(ray: Any, samplers: Sequence[Any], vocabulary: int, context: int) -> list[TrainSample]:
    """Responses of every sampler to random prompts, half of them praised."""
    rng, samples = np.random.default_rng(0), list[TrainSample]()
    params = SamplingParams(max_tokens=min(TOKENS, context // 2), n=RESPONSES)
    for index, worker in enumerate(samplers):
        lengths = rng.integers(1, max(2, min(48, context // 2)), PROMPTS)
        prompts = [
            Prompt(f"{index}-{i}", "", "", "", token_ids=tuple(map(int, rng.integers(0, vocabulary, length))))
            for i, length in enumerate(lengths)
        ]
        for group in ray.get([worker.generate.remote(prompt, params) for prompt in prompts], timeout=WAIT_S):
            samples += _as_samples(group)
    return samples


def _as_samples(group: ResponseGroup) -> list[TrainSample]:
    prompt = np.asarray(group.prompt.token_ids, np.int32)
    return [
        TrainSample(group.prompt.id, prompt, r.token_ids, (-1.0) ** place, r.logprobs, r.weight_versions)
        for place, r in enumerate(group.responses)
    ]


def _moved(group: LearnerGroup, samples: Sequence[TrainSample]) -> float:
    """Mean change of the logprobs of responses that the version before sampled."""
    if not samples:
        return 0.0
    now = group.logprobs(samples)
    changes = [np.abs(ours - sample.sampler_logprobs) for ours, sample in zip(now, samples, strict=True)]
    return float(np.concatenate(changes).mean())


def _compared(version: int, found: Mismatch, moved: float) -> SyncCheck:
    return SyncCheck(version, found.tokens, found.max_abs, found.mean_abs, moved)
