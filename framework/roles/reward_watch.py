"""Says at once what a reward's author must know: a reward that fails, and one from which nothing can be learned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from framework.roles.reward import failures
from framework.stored import Scored, scored_group, text_of
from framework.types import ResponseGroup

logger = logging.getLogger("framework")

TOLD_FAILURES = 3  # different ones; the others are in the metrics and the workers' logs
WATCHED_BATCHES = 2  # of prompts
SAMPLES, MAX_CHARS = 3, 300


@dataclass
class RewardWatch:
    """Looks at scored groups as they arrive, whether they will be trained on or give way to others."""

    say: Callable[[str], None] = logger.warning
    first: int = 0  # groups after which it tells from which rewards nothing can be learned: two batches; 0: never
    _told: set[str] = field(default_factory=set, init=False)
    _seen: list[Scored] = field(default_factory=list, init=False)
    _judged: bool = field(default=False, init=False)

    def arrived(self, scored: Scored) -> bool:
        """Tell the first failures of their kind, and what is constant; return whether this group has failures."""
        self._watch(scored)
        return self.told(scored)

    def told(self, scored: Scored) -> bool:
        """Tell the first failures of their kind; return whether there are any in this group."""
        found = failures([scored])
        for reason in found:
            kind = reason.partition(": ")[2][:100]
            if kind not in self._told and len(self._told) < TOLD_FAILURES:
                self._told.add(kind)
                self.say(f"a reward failed: {reason}")
        return bool(found)

    def _watch(self, scored: Scored) -> None:
        if self._judged or not self.first:
            return
        shown = len(self._seen) % max(1, self.first // SAMPLES) == 0  # no other response needs to be kept for this
        nothing = ResponseGroup(scored.group.prompt, ())
        self._seen.append(scored if shown else scored_group(nothing, scored.scores))
        if len(self._seen) == self.first:
            for reason in constant_rewards(self._seen):
                self.say(reason)
            self._seen, self._judged = [], True  # their responses are not needed any more


def constant_rewards(groups: Sequence[Scored]) -> list[str]:
    """A message for each reward component that has one value for all responses, with three of them.

    One too where rewards differ between prompts, but within no group.
    """
    scores = [score for scored in groups for score in scored.scores if not score.error]
    names = {name: None for score in scores for name in score.components}
    messages = []
    for name in names:
        values = {score.components[name] for score in scores if name in score.components}
        if len(values) == 1 and len(scores) > 1:
            value = values.pop()
            why = "no response meets it" if value == 0 else "every response has it"
            messages.append(
                f"reward {name} gave {value:g} to all {len(scores)} responses so far "
                f"({why}): nothing is learned from it. Three of them: {_samples(groups)}"
            )
    totals = [{score.total for score in scored.scores if not score.error} for scored in groups]
    if len(set().union(*totals)) > 1 and all(len(found) < 2 for found in totals):
        messages.append(
            f"in each of the {len(groups)} groups so far all responses have the same reward: "
            f"nothing is learned where none is better than another. Three of them: {_samples(groups)}"
        )
    return messages


def _samples(groups: Sequence[Scored]) -> str:
    shown = []
    for scored in groups[:: max(1, len(groups) // SAMPLES)][:SAMPLES]:
        prompt, text = scored.group.prompt, text_of(scored.group.responses[0])
        cut = text if len(text) <= MAX_CHARS else text[: MAX_CHARS // 2] + " … " + text[-MAX_CHARS // 2 :]
        shown.append(f"prompt {prompt.id} (answer {prompt.answer!r}): {cut!r}")
    return "; ".join(shown)
