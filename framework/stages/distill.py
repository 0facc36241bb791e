"""Distillation of a dense student: fine-tuning on what R1's data stages made, with the student's own tokenizer.

Source: DeepSeek-R1 (2501.12948v2) section B.4.3 and Table 6. Only texts go from teacher to student, so their
vocabularies need not agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from framework.bounds import PositiveFloat, bounded
from framework.data.think_tags import ThinkTags
from framework.errors import UserError
from framework.stages.sft import SftConfig


@dataclass(frozen=True)
@bounded
class DistillConfig(SftConfig):
    """Which student, from which checkpoint, and how it is tuned: its learning rate goes by its model's name."""

    base: Path | None = None  # the student's checkpoint
    pretrained_here: bool = False  # without `base`: whether the run pretrains the student, or one is still to be given
    think_tags: ThinkTags = "added"
    # model -> where its cosine starts; it ends at a tenth
    learning_rates: Mapping[str, PositiveFloat] = field(default_factory=dict)

    def at_rate_of(self, model: str) -> SftConfig:
        """Return the fine-tuning at this model's rate; raises UserError if it has none."""
        if model not in self.learning_rates:
            known = ", ".join(self.learning_rates) or "none"
            raise UserError("learning_rates", model, f"must have this student's rate; there are {known}")
        rate = self.learning_rates[model]
        return replace(self, lr=rate, final_lr=rate / 10)
