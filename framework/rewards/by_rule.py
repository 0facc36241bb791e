"""Helpfulness and safety of general requests by rule: what a laptop has where others ask a reward model or a judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from framework.bounds import bounded
from framework.data.general import answers_well
from framework.data.judging import is_safe_by_rule
from framework.data.reasoning import split_reasoning
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.types import Prompt, Response

COLUMNS = {"helpful": "needs", "safe": "decline"}  # what the rule reads of a prompt


@dataclass(frozen=True, kw_only=True)
@bounded
class ByRule(Reward):
    """1 or 0, for requests made from templates (`data.general`), which say what a good answer holds.

    `helpful` reads the summary alone, `safe` the reasoning too, as R1's reward models do (R1 v2 B.3). Because the rule
    knows the right answers and no reward model does, it tells a better policy from one that fools its reward model.
    """

    asks: Literal["helpful", "safe"]

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0; a response whose summary cannot be told from its reasoning is not helpful."""
        text = prompt.opened + response.text
        if self.asks == "safe":
            return float(is_safe_by_rule(prompt, text))
        found = split_reasoning(text)
        return float(found is not None and answers_well(prompt, found.summary))

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt that no template made."""
        if COLUMNS[self.asks] not in prompt.columns:
            allowed = f"no column {COLUMNS[self.asks]!r}: the rule knows requests made from templates alone"
            raise UserError(f"prompt {prompt.id}: columns", ", ".join(prompt.columns) or "none", allowed)
