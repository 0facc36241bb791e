"""From scored groups to what the learner trains on, and to the numbers that people read. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from framework.algorithms.advantages import has_signal
from framework.algorithms.mismatch import Mismatch, MismatchConfig
from framework.objectives.policy import PolicyObjective
from framework.stored import Sample, SampleOutline, Scored, StoredResponse, text_of
from framework.types import Int32, Minibatch, Response, RewardScore, SampleRow, StepResult, TrainSample

# What a step reports -> its name among a run's metrics, where the report and wandb group names by what precedes "/"
STEP_METRICS = {
    "clip_low": "clip/low",
    "clip_high": "clip/high",
    "offpolicy_masked": "clip/offpolicy_masked",
    "ref_kl": "kl/reference",
    "old_kl": "kl/old",
    "ratio": "policy/ratio",
    "tis_weight": "policy/tis_weight",
    "loss": "loss/policy",
}


@dataclass(frozen=True)
class TrainBatch:
    """One rollout batch as the learner receives it: an optimizer step a minibatch."""

    minibatches: tuple[Minibatch, ...]
    probe: tuple[Sample, ...]  # responses to measure the mismatch on
    version: int  # policy version that the learner holds when it starts
    gate: MismatchConfig = MismatchConfig()  # how large a mismatch the batch is still trained with


def _scored_rewards(scored: Scored) -> torch.Tensor:
    """Rewards of the responses that could be scored, [<= G]."""
    return torch.tensor([score.total for score in scored.scores if not score.error], dtype=torch.float64)


def group_has_signal(scored: Scored) -> bool:
    """Whether the group's rewards differ; responses that could not be scored don't count."""
    rewards = _scored_rewards(scored)
    return len(rewards) > 1 and has_signal(rewards)


def advantages(scored: Scored, objective: PolicyObjective) -> dict[int, float]:
    """Index of each response that could be scored -> its advantage."""
    indices = [index for index, score in enumerate(scored.scores) if not score.error]
    if not indices:
        return {}
    return dict(zip(indices, objective.advantages(_scored_rewards(scored)).tolist(), strict=True))


def train_samples(scored: Scored, objective: PolicyObjective) -> list[Sample]:
    """Every response with its advantage: 0 in a group without signal, and where the response could not be scored.

    Such a response is in no baseline, but in the KL term, the denominators and the metrics like any other. A critic
    learns what rewards are, and so is not shown one that has none.
    """
    found, group = advantages(scored, objective), scored.group
    prompt_ids = np.asarray(group.prompt.token_ids, dtype=np.int32)
    responses: Sequence[Response | StoredResponse] = group.responses
    return [
        _sample(group.prompt.id, prompt_ids, response, found.get(i, 0.0))
        for i, response in enumerate(responses)
        if i in found or not objective.critic
    ]


def with_finite_totals(scores: Sequence[RewardScore]) -> tuple[RewardScore, ...]:
    """Count a reward that is not a finite number as one that failed: a group's mean would be none either."""
    return tuple(
        score
        if score.error or math.isfinite(score.total)
        else replace(score, total=0.0, error=f"the rewards add up to {score.total}, which is not a finite number")
        for score in scores
    )


def _sample(name: str, prompt_ids: Int32, response: Response | StoredResponse, advantage: float) -> Sample:
    if isinstance(response, StoredResponse):
        return SampleOutline(name, prompt_ids, response.outline, advantage, response.place)
    return TrainSample(
        prompt_id=name,
        prompt_ids=prompt_ids,
        response_ids=response.token_ids,
        advantage=advantage,
        sampler_logprobs=response.logprobs,
        weight_versions=response.weight_versions,
    )


def build_batch(
    groups: Sequence[Scored],
    objective: PolicyObjective,
    minibatches: int,
    version: int,
    probe: int,
    seed: int,
    gate: MismatchConfig,
) -> TrainBatch:
    """Split a batch's responses at random into minibatches of equal size (R1: 8,192 outputs into 16 minibatches).

    Order and probe depend on the run's seed and the version alone, so a resumed run splits alike.
    """
    samples = [sample for scored in groups for sample in train_samples(scored, objective)]
    order = np.random.default_rng((seed, version)).permutation(len(samples))
    parts = [tuple(samples[i] for i in part) for part in np.array_split(order, minibatches)]
    picked = np.random.default_rng((seed, version, 1)).permutation(len(samples))[:probe]
    return TrainBatch(
        tuple(_minibatch(part, objective.skip_idle) for part in parts),
        tuple(samples[i] for i in picked),
        version,
        gate,
    )


def _minibatch(samples: tuple[Sample, ...], skip_idle: bool) -> Minibatch:
    kept = tuple(sample for sample in samples if sample.advantage or not skip_idle)
    return replace(Minibatch.of(samples), samples=kept)


def batch_metrics(groups: Sequence[Scored], discarded: Sequence[Scored], version: int) -> dict[str, float]:
    """Means over one batch's responses; `version` is the policy that trains on it, others took `discarded`'s place."""
    scores = [score for scored in groups for score in scored.scores]
    outlines = [response.outline for scored in groups for response in scored.group.responses]
    valid = [score for score in scores if not score.error]
    errors = [score.error for scored in (*groups, *discarded) for score in scored.scores]
    lengths = np.array([outline.length for outline in outlines])
    sampled_by = np.array([pair for outline in outlines for pair in outline.versions])  # [N, (version, tokens)]
    staleness, tokens_of = version - sampled_by[:, 0], sampled_by[:, 1]
    no_signal = len(discarded) + sum(not group_has_signal(scored) for scored in groups)
    metrics = {
        "reward/mean": float(np.mean([score.total for score in valid])) if valid else 0.0,
        "reward/failed_share": float(np.mean([bool(error) for error in errors])),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated_share": float(np.mean([one.finish_reason == "length" for one in outlines])),
        "staleness/mean": float(np.average(staleness, weights=tokens_of)),
        "staleness/max": float(staleness.max()),
        "groups/zero_std_share": no_signal / (len(groups) + len(discarded)),
    }
    if tokens := sum(score.tokens for scored in (*groups, *discarded) for score in scored.scores):
        metrics["reward/tokens"] = float(tokens)  # what judges read and wrote: the cost of this batch's rewards
    for name in sorted({name for score in valid for name in score.components}):
        metrics[f"reward/{name}"] = float(np.mean([s.components[name] for s in valid if name in s.components]))
    return metrics


def step_metrics(steps: Sequence[StepResult]) -> dict[str, float]:
    """Means over those of a batch's optimizer steps that have the metric: one that was skipped has few."""
    names = dict.fromkeys(name for step in steps for name in step.metrics)
    return {
        STEP_METRICS.get(name, f"train/{name}"): float(
            np.mean([step.metrics[name] for step in steps if name in step.metrics])
        )
        for name in names
    }


def sample_rows(groups: Sequence[Scored], objective: PolicyObjective, prompts: int = 4) -> list[SampleRow]:
    """A few responses for people to read: the best and the worst of the first groups."""
    rows = []
    for scored in groups[:prompts]:
        found = advantages(scored, objective)
        rewards = [score.total for score in scored.scores]
        candidates = list(found) or range(len(rewards))  # those that failed only where all did
        for index in dict.fromkeys(
            (max(candidates, key=rewards.__getitem__), min(candidates, key=rewards.__getitem__))
        ):
            response, score = scored.group.responses[index], scored.scores[index]
            outline = response.outline
            rows.append(
                SampleRow(
                    prompt=scored.group.prompt.text,
                    response=text_of(response),
                    reward=score.total,
                    components=dict(score.components),
                    advantage=found.get(index, 0.0),
                    length=outline.length,
                    finish_reason=outline.finish_reason,
                    version=outline.versions[-1][0],
                )
            )
    return rows


def mismatch_metrics(gap: Mismatch) -> dict[str, float]:
    """What the probe found between learner and sampler; nats. Without tokens only that there were none."""
    if not gap.tokens:
        return {"mismatch/tokens": 0.0}
    return {
        "mismatch/tokens": gap.tokens,
        "mismatch/mean_abs": gap.mean_abs,
        "mismatch/max_abs": gap.max_abs,
        "mismatch/k3": gap.k3_kl,
    }
