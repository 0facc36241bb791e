"""What an evaluation in the middle of training asks, and which numbers it records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.readers import read_prompts
from framework.roles.rl_evaluation import HeldOut
from framework.stages.eval_numbers import JudgedStored, task_numbers, votes_of
from framework.stages.evaluate import EvaluateConfig
from framework.stored import Scored
from framework.types import SamplingParams


def held_out(file: Path, tokenizer: Any, context: int, template: TemplateConfig, config: EvaluateConfig) -> HeldOut:
    """Return the prompts of `file` as the evaluation of the finished policy asks them.

    Raises UserError for a prompt that leaves no room for a response, or where there is none.
    """
    found = read_prompts(file)[: config.max_prompts or None]
    prompts = tokenize_prompts(tokenizer, found, context, config.max_tokens, template)
    params = SamplingParams(config.temperature, config.top_p, config.max_tokens, config.k)
    return HeldOut(prompts, params, HeldOutNumbers(config.right_by, config.format), config.right_by)


@dataclass(frozen=True)
class HeldOutNumbers:
    """pass@1 first, by which the best checkpoint is chosen; the mean reward where no prompt has a verdict."""

    right_by: tuple[str, ...]
    format: str

    def __call__(self, groups: Sequence[Scored]) -> dict[str, float]:
        """Return the numbers of these groups by the names under which they are recorded."""
        judged = [JudgedStored(group, votes_of(group)) for group in groups]
        found = task_numbers("all", judged, self.right_by, self.format)
        rewards = [score.total for group in groups for score in group.scores if not score.error]
        numbers = {
            "evaluation/pass_at_1": found.pass_at_1,
            "evaluation/reward": float(np.mean(rewards)) if rewards else None,
            "evaluation/pass_at_1_se": found.pass_at_1_se,
            "evaluation/cons_at_k": found.cons_at_k,
            "evaluation/pass_at_k": found.pass_at_k,
            "evaluation/format_rate": found.format_rate,
            "evaluation/response_tokens": found.mean_response_tokens,
            "evaluation/truncated_share": found.truncated_share,
        }
        return {name: value for name, value in numbers.items() if value is not None}
