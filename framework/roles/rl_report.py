"""All numbers of one trained batch, as they are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from framework.algorithms.balance import load_imbalance
from framework.roles.rl_batch import batch_metrics, mismatch_metrics, step_metrics
from framework.roles.rl_clients import TrainResult
from framework.stored import Scored
from framework.types import StepResult


def batch_report(
    groups: Sequence[Scored],
    discarded: Sequence[Scored],
    result: TrainResult,
    phases: Mapping[str, float],
    version: int,
) -> dict[str, float]:
    """Means over the batch and its optimizer steps, the mismatch if measured, the experts' balance, seconds, tokens/s.

    `version` trained on it; `phases` are seconds by name, with time/step_s among them.
    """
    metrics = batch_metrics(groups, discarded, version) | step_metrics(result.steps) | dict(result.metrics)
    if result.mismatch is not None:
        metrics |= mismatch_metrics(result.mismatch)
    if (load_LE := expert_load(result.steps)) is not None:
        metrics["experts/max_over_mean"] = float(load_imbalance(torch.from_numpy(load_LE)).mean())
    metrics |= {**phases, "time/train_s": result.seconds}
    sampled = sum(response.outline.length for one in (*groups, *discarded) for response in one.group.responses)
    metrics["sampled_tokens_per_s"] = sampled / metrics["time/step_s"]
    metrics["trained_tokens_per_s"] = result.tokens / metrics["time/step_s"]
    return metrics


def expert_load(steps: Sequence[StepResult]) -> npt.NDArray[np.float64] | None:
    """Tokens routed to each expert of each MoE layer over the steps, [L, E]; None where there are no experts."""
    loads = [step.expert_load_LE for step in steps if step.expert_load_LE is not None]
    return np.sum(loads, axis=0) if loads else None
