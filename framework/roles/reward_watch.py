"""Says at once what a reward's author must know: a reward that fails, and one from which nothing can be learned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from framework.roles.reward import failures
from framework.types import ScoredGroup

logger = logging.getLogger("framework")

TOLD_FAILURES = 3  # different ones; the others are in the metrics and the workers' logs
WATCHED_BATCHES = 2
SAMPLES, MAX_CHARS = 3, 300


@dataclass
class RewardWatch:
    """Looks at scored groups as they arrive and at the first batches as they are trained."""

    say: Callable[[str], None] = logger.warning
    _told: set[str] = field(default_factory=set, init=False)
    _batches: list[Sequence[ScoredGroup]] = field(default_factory=list, init=False)

    def arrived(self, scored: ScoredGroup) -> bool:
        """Tell the first failures of their kind; return whether there are any in this group."""
        found = failures([scored])
        for reason in found:
            kind = reason.partition(": ")[2][:100]
            if kind not in self._told and len(self._told) < TOLD_FAILURES:
                self._told.add(kind)
                self.say(f"a reward failed: {reason}")
        return bool(found)

    def trained(self, batch: Sequence[ScoredGroup]) -> None:
        """After the first WATCHED_BATCHES, tell of rewards that were the same for every response."""
        if len(self._batches) == WATCHED_BATCHES:
            return
        self._batches.append(batch)
        if len(self._batches) == WATCHED_BATCHES:
            groups = [scored for one in self._batches for scored in one]
            for reason in constant_rewards(groups):
                self.say(reason)
            self._batches = [[]] * WATCHED_BATCHES  # their responses are not needed any more


def constant_rewards(groups: Sequence[ScoredGroup]) -> list[str]:
    """A message for each reward component that has one value for all responses, with three of them."""
    scores = [score for scored in groups for score in scored.scores if not score.error]
    names = {name: None for score in scores for name in score.components}
    messages = []
    for name in names:
        values = {score.components[name] for score in scores if name in score.components}
        if len(values) == 1 and len(scores) > 1:
            value = values.pop()
            why = "no response meets it" if value == 0 else "every response has it"
            messages.append(
                f"reward {name} gave {value:g} to all {len(scores)} responses of the first {WATCHED_BATCHES} batches "
                f"({why}): nothing is learned from it. Three of them: {_samples(groups)}"
            )
    return messages


def _samples(groups: Sequence[ScoredGroup]) -> str:
    shown = []
    for scored in groups[:: max(1, len(groups) // SAMPLES)][:SAMPLES]:
        prompt, text = scored.group.prompt, scored.group.responses[0].text
        cut = text if len(text) <= MAX_CHARS else text[: MAX_CHARS // 2] + " … " + text[-MAX_CHARS // 2 :]
        shown.append(f"prompt {prompt.id} (answer {prompt.answer!r}): {cut!r}")
    return "; ".join(shown)
