"""Schedules of the recipe as pure functions of the step: learning rates, and values that change at given steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from framework.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Probability, bounded
from framework.errors import UserError


@dataclass(frozen=True)
@bounded
class LrSchedule:
    """Linear warm-up, then constant, cosine, linear or multistep.

    Steps count from 0; the first trains at lr / warmup_steps.

    DeepSeek-V3 §4.2 (constant, cosine to a tenth, constant, a smaller constant at the end), V2 §3.1.2 and MoE §5.1.2
    (multistep: x0.316 at 60-80%, 90%), BERT, A.2 (linear, to 0). Linear takes the fields of cosine.
    """

    lr: NonNegativeFloat = 3e-6
    kind: Literal["constant", "cosine", "linear", "multistep"] = "constant"
    warmup_steps: NonNegativeInt = 0
    total_steps: NonNegativeInt = 0  # needed by all but constant
    decay_start: Probability = 0.0  # cosine: share of total_steps that stays at lr
    decay_end: Probability = 1.0  # cosine: share of total_steps from which the rate is lr * final_ratio
    final_ratio: NonNegativeFloat = 0.1  # cosine: last lr / lr
    tail_start: Probability = 1.0  # cosine: share of total_steps from which the rate is tail_lr
    tail_lr: NonNegativeFloat = 0.0
    milestones: tuple[Probability, ...] = (0.8, 0.9)  # multistep: shares of total_steps
    factor: PositiveFloat = 0.316  # multistep: per milestone

    def __post_init__(self) -> None:
        if self.kind != "constant" and self.total_steps <= self.warmup_steps:
            raise UserError("schedule.total_steps", self.total_steps, f"above warmup_steps = {self.warmup_steps}")
        if not self.decay_start < self.decay_end <= self.tail_start:
            shares = (self.decay_start, self.decay_end, self.tail_start)
            allowed = "must rise: decay_start < decay_end <= tail_start"
            raise UserError("schedule.decay_start, decay_end, tail_start", shares, allowed)

    def at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.lr
        progress = min(step / self.total_steps, 1.0)
        if self.kind == "multistep":
            return self.lr * self.factor ** sum(progress >= milestone for milestone in self.milestones)
        if progress >= self.tail_start < 1:
            return self.tail_lr
        start = max(self.decay_start, self.warmup_steps / self.total_steps)
        decay = min(max(progress - start, 0.0) / (self.decay_end - start), 1.0)
        left = 1 - decay if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * decay))
        return self.lr * (self.final_ratio + (1 - self.final_ratio) * left)


@dataclass(frozen=True)
@bounded
class StepwiseValue:
    """A value that changes at given steps: `values[i]` holds before step `until[i]`, the last one from there on.

    DeepSeek-V3 section 4.2: the bias update speed and the weight of multi-token prediction.
    """

    values: tuple[NonNegativeFloat, ...]
    until: tuple[PositiveInt, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.until) + 1:
            raise UserError("values", self.values, f"must be one more than until={self.until}")
        if list(self.until) != sorted(set(self.until)):
            raise UserError("until", self.until, "must be rising steps")

    def over(self, steps: int) -> float:
        """Sum of the values at the first `steps` steps."""
        ends = [min(step, steps) for step in (*self.until, steps)]
        return sum(value * (end - start) for value, start, end in zip(self.values, [0, *ends], ends, strict=False))

    def at(self, step: int) -> float:
        """Value at optimizer step `step`, from 0."""
        return self.values[sum(step >= change for change in self.until)]


def value_at(value: float | StepwiseValue, step: int) -> float:
    """Value at optimizer step `step`; a plain number never changes."""
    return value.at(step) if isinstance(value, StepwiseValue) else value


def sum_over(value: float | StepwiseValue, steps: int) -> float:
    """Sum of a value over the first `steps` steps."""
    return value.over(steps) if isinstance(value, StepwiseValue) else value * steps


def values_of(value: float | StepwiseValue) -> tuple[float, ...]:
    """Every value that it takes."""
    return value.values if isinstance(value, StepwiseValue) else (value,)
