"""How far the learner's logprobs of sampled tokens lie from the sampler's, and the gate that stops a run on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from framework.bounds import Bound, bounded
from framework.errors import MismatchTooLarge
from framework.types import Float32, TrainSample


@dataclass(frozen=True)
class TokenGap:
    """The token on which the two engines differ most."""

    prompt_id: str
    sample_index: int  # in the list measured
    position: int  # in the response, from 0
    token_id: int
    learner_logprob: float
    sampler_logprob: float


@dataclass(frozen=True)
class Mismatch:
    """Gap between learner and sampler over `tokens` response tokens; all zero, without a worst, if there are none."""

    mean_abs: float = 0.0  # nats
    max_abs: float = 0.0  # nats
    k3_kl: float = 0.0  # KL(sampler || learner), k3 estimate, nats per token
    tokens: int = 0
    worst: TokenGap | None = None


@dataclass(frozen=True)
@bounded
class MismatchConfig:
    """When a gap is too large to train on. A bf16 sampler under a float32 learner differs by about 0.01 on average."""

    stop_above: Annotated[float, Bound(above=0, infinite=True, note=".inf never stops")] = 0.1  # nats
    measure: Literal["mean_abs", "max_abs", "k3_kl"] = "mean_abs"


def measure_mismatch(
    samples: Sequence[TrainSample], learner_logprobs: Sequence[Float32], version: int | None = None
) -> Mismatch:
    """Compare the learner's logprobs ([R] for each sample) with the sampler's.

    With `version`, only tokens sampled by that policy version count: under asynchronous rollouts the others differ
    because the policy itself has moved. Raises ValueError if the lengths differ.
    """
    parts: list[Mismatch] = []
    for index, (sample, learner) in enumerate(zip(samples, learner_logprobs, strict=True)):
        if learner.shape != sample.sampler_logprobs.shape:
            raise ValueError(
                f"sample {index}: {learner.shape} learner logprobs for {sample.sampler_logprobs.shape} tokens"
            )
        parts.append(_of_sample(index, sample, learner, version))
    return merge_mismatches(parts)


def merge_mismatches(parts: Sequence[Mismatch]) -> Mismatch:
    """Combine measurements of disjoint tokens (of ranks, of micro-batches) as if they were measured at once."""
    parts = [part for part in parts if part.tokens]
    if not parts:
        return Mismatch()
    tokens = sum(part.tokens for part in parts)
    worst = max(parts, key=lambda part: math.inf if math.isnan(part.max_abs) else part.max_abs)
    return Mismatch(
        mean_abs=sum(part.mean_abs * part.tokens for part in parts) / tokens,
        max_abs=worst.max_abs,
        k3_kl=sum(part.k3_kl * part.tokens for part in parts) / tokens,
        tokens=tokens,
        worst=worst.worst,
    )


def check_mismatch(mismatch: Mismatch, config: MismatchConfig) -> None:
    """Raise MismatchTooLarge, naming the worst token, if the configured measure is above the bar or not a number."""
    value = float(getattr(mismatch, config.measure))
    if value <= config.stop_above:
        return
    assert mismatch.worst is not None  # a gap above 0 was measured on some token
    gap = mismatch.worst
    raise MismatchTooLarge(
        f"learner and sampler disagree: {config.measure} {value:.4g} nats over {mismatch.tokens} tokens is above "
        f"mismatch.stop_above={config.stop_above:g}; worst: prompt {gap.prompt_id!r}, sample {gap.sample_index}, "
        f"response position {gap.position} (token {gap.token_id}), learner logprob {gap.learner_logprob:.4f}, "
        f"sampler logprob {gap.sampler_logprob:.4f}"
    )


def _of_sample(index: int, sample: TrainSample, learner: Float32, version: int | None) -> Mismatch:
    positions = np.arange(len(learner))
    if version is not None:
        positions = positions[sample.weight_versions == version]
    if not len(positions):
        return Mismatch()
    ours = learner[positions].astype(np.float64)
    theirs = sample.sampler_logprobs[positions].astype(np.float64)
    gaps = ours - theirs
    worst = int(np.argmax(np.where(np.isnan(gaps), np.inf, np.abs(gaps))))
    position = int(positions[worst])
    with np.errstate(over="ignore"):
        k3_kl = float(np.mean(np.expm1(gaps) - gaps))
    return Mismatch(
        mean_abs=float(np.abs(gaps).mean()),
        max_abs=float(np.abs(gaps[worst])),
        k3_kl=k3_kl,
        tokens=len(positions),
        worst=TokenGap(
            sample.prompt_id, index, position, int(sample.response_ids[position]), float(ours[worst]),
            float(theirs[worst]),
        ),
    )  # fmt: skip
