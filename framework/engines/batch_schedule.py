"""How many rows each step of pretraining takes, and where in the data it begins: a function of the step alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from framework.bounds import PositiveFloat, PositiveInt, bounded
from framework.errors import UserError

RAMP_STEPS = 1_000_000  # the ramp is laid out step by step; V3's takes 12,000


@dataclass(frozen=True)
@bounded
class BatchRamp:
    """The batch grows from `start_rows` to its full size over the first `tokens` tokens, in multiples of `multiple`.

    DeepSeek-V3 section 4.2: 3,072 to 15,360 rows over 469B tokens; V2 section 3.1.2: 2,304 to 9,216 over 225B. Neither
    says in what shape: linear in tokens here.
    """

    start_rows: PositiveInt
    tokens: PositiveFloat
    multiple: PositiveInt = 1

    def __post_init__(self) -> None:
        if self.start_rows % self.multiple:
            allowed = f"must be a multiple of multiple={self.multiple}"
            raise UserError("ramp.start_rows", self.start_rows, allowed)


@dataclass(frozen=True)
class BatchSchedule:
    """Rows of `row_tokens` tokens by step: `rows` of them once `ramp` is over."""

    rows: int
    row_tokens: int
    ramp: BatchRamp | None = None

    def __post_init__(self) -> None:
        if self.ramp is not None and not self.ramp.start_rows <= self.rows:
            raise UserError("ramp.start_rows", self.ramp.start_rows, f"must be at most rows_per_step={self.rows}")
        longest = RAMP_STEPS * self.row_tokens * (0 if self.ramp is None else self.ramp.start_rows)
        if self.ramp is not None and self.ramp.tokens > longest:
            allowed = f"must be at most {longest:g}: {RAMP_STEPS:,} steps of start_rows={self.ramp.start_rows}"
            raise UserError("ramp.tokens", self.ramp.tokens, allowed)

    def rows_at(self, step: int) -> int:
        """Rows of optimizer step `step`, from 0."""
        return self.first_row(step + 1) - self.first_row(step)

    def first_row(self, step: int) -> int:
        """Rows that all steps before `step` take together."""
        ramp = self._starts
        return ramp[step] if step < len(ramp) else ramp[-1] + (step - len(ramp) + 1) * self.rows

    def tokens(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        return self.first_row(steps) * self.row_tokens

    def steps(self, tokens: float) -> int:
        """Steps until `tokens` tokens are reached."""
        rows, ramp = math.ceil(tokens / self.row_tokens), self._starts
        if rows <= ramp[-1]:
            return next(step for step, first in enumerate(ramp) if first >= rows)
        return len(ramp) - 1 + math.ceil((rows - ramp[-1]) / self.rows)

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """First row of each step of the ramp, and of the step after it."""
        starts, ramp = [0], self.ramp
        while ramp is not None and starts[-1] * self.row_tokens < ramp.tokens:
            grown = (self.rows - ramp.start_rows) * starts[-1] * self.row_tokens / ramp.tokens
            starts.append(starts[-1] + ramp.start_rows + int(grown) // ramp.multiple * ramp.multiple)
        return tuple(starts)
