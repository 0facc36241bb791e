"""Rejection sampling's choice: of many responses to a prompt those that are right, whole, readable and different.

Every response that goes is written down with its reason, so that a set's counts add up to what was sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from framework.bounds import NonNegativeInt, bounded
from framework.data.readability import ReadableConfig, unreadable
from framework.data.reasoning import Reasoned, split_reasoning
from framework.data.tasks import same_text
from framework.errors import UserError
from framework.types import Prompt, RewardScore, ScoredGroup

RIGHT_BY = ("accuracy", "options", "code", "judge")  # names of rewards that say whether a response is right


def check_right_by(names: Sequence[str], rewards: Collection[str], key: str) -> None:
    """Raise UserError, naming `key`, unless each is one of the rewards, or of RIGHT_BY beside one that is."""
    unknown = [name for name in names if name not in rewards and name not in RIGHT_BY]
    if unknown or (names and not set(names) & set(rewards)):
        raise UserError(key, unknown[0] if unknown else list(names), f"must be of the rewards: {', '.join(rewards)}")


@dataclass(frozen=True)
@bounded
class SelectionConfig:
    """What a response must be to stay."""

    # rewards that must be 1: of several the first that a prompt is scored by; none: all responses count as right
    right_by: tuple[str, ...] = RIGHT_BY
    readable: ReadableConfig = ReadableConfig()
    most_per_prompt: NonNegativeInt = 0  # responses kept of one prompt; 0: all


@dataclass(frozen=True)
class Sample:
    """A response that stays. Its id leads back to its prompt and to its place among the prompt's responses."""

    id: str  # "PROMPT#PLACE"
    prompt: Prompt
    found: Reasoned


@dataclass(frozen=True)
class Drop:
    """A response, or a row, that goes."""

    id: str
    reason: str


@dataclass
class Selection:
    """What a choice has kept and dropped so far."""

    kept: list[Sample] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Reason -> responses, the most frequent first."""
        return dict(Counter(drop.reason for drop in self.dropped).most_common())

    def described(self) -> str:
        """In one line, for people."""
        went = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in self.counts().items())
        return f"{len(self.kept):,} kept" + (f"; dropped: {went}" if went else "")


def select(groups: Iterable[ScoredGroup], config: SelectionConfig) -> Selection:
    """Choose from every group; the kept stand in the order of prompts and places, whatever order they come in."""
    selection = Selection()
    for group in sorted(groups, key=lambda group: group.group.prompt.id):
        _select(group, config, selection)
    return selection


def _select(group: ScoredGroup, config: SelectionConfig, selection: Selection) -> None:
    prompt, kept = group.group.prompt, set[str]()
    for place, (response, score) in enumerate(zip(group.group.responses, group.scores, strict=True)):
        name = f"{prompt.id}#{place}"
        found = split_reasoning(prompt.opened + response.text)
        reason = _verdict(score, config.right_by) or ("unfinished" if response.finish_reason != "stop" else None)
        if reason is None and found is None:
            reason = "no_reasoning"
        if reason is None and found is not None:
            reason = unreadable(found, prompt.text, config.readable)
            said = same_text(f"{found.reasoning} {found.summary}")
            if reason is None and said in kept:
                reason = "duplicate"
            if reason is None and config.most_per_prompt and len(kept) >= config.most_per_prompt:
                reason = "surplus"
            if reason is None:
                kept.add(said)
                selection.kept.append(Sample(name, prompt, found))
        if reason is not None:
            selection.dropped.append(Drop(name, reason))


def _verdict(score: RewardScore, right_by: Sequence[str]) -> str | None:
    """Why the response does not count as right; None if it does."""
    if score.error:
        return "failed"
    if not right_by:
        return None
    values = [score.components[name] for name in right_by if name in score.components]
    if not values:
        return "not_judged"
    return None if values[0] >= 1 else "wrong"
