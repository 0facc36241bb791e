"""Helpfulness and safety of general requests by rule: what a laptop has where others ask a reward model or a judge.

1 or 0, for requests made from templates (`data.general`), which say what a good answer holds. Because the rules know
the right answers and no reward model does, they tell a better policy from one that fools its reward model.
"""

from __future__ import annotations

from dataclasses import dataclass

from framework.bounds import bounded
from framework.data.general import answers_well
from framework.data.judging import is_safe_by_rule
from framework.data.reasoning import split_reasoning
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.types import Prompt, Response


@dataclass(frozen=True, kw_only=True)
@bounded
class Helpful(Reward):
    """1 if the summary says what a good answer says; like R1's helpful model it reads nothing else (R1 v2 B.3)."""

    reasons: bool = True  # false: of models that were not taught to reason; their responses are read whole

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0; a response whose summary cannot be told from its reasoning is not helpful."""
        text = prompt.opened + response.text
        if not self.reasons:
            return float(answers_well(prompt, text))
        found = split_reasoning(text)
        return float(found is not None and answers_well(prompt, found.summary))

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt that no template made."""
        _check(prompt, "needs")


@dataclass(frozen=True, kw_only=True)
@bounded
class Safe(Reward):
    """1 if the response declines what must be declined, and for any other request; it reads the reasoning too."""

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0."""
        return float(is_safe_by_rule(prompt, prompt.opened + response.text))

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt that no template made."""
        _check(prompt, "decline")


def _check(prompt: Prompt, column: str) -> None:
    if column not in prompt.columns:
        allowed = f"no column {column!r}: the rule knows requests made from templates alone"
        raise UserError(f"prompt {prompt.id}: columns", ", ".join(prompt.columns) or "none", allowed)
