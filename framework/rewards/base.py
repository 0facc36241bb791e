"""What a reward is, and how the configured rewards of one response add up."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar

from framework.bounds import FiniteFloat, NonNegativeInt, Probability, Seconds, bounded
from framework.data.tasks import same_text
from framework.errors import UserError, did_you_mean
from framework.rewards.blame import error_text, place_of_error
from framework.rewards.endpoint import NoAnswer
from framework.types import Prompt, Response, ResponseGroup, RewardScore

MAX_EXTRACTED_CHARS = 10_000
MAX_ERROR_CHARS = 500  # an exception may quote a whole response


@dataclass(frozen=True, kw_only=True)
@bounded
class Reward:
    """One reward component. A subclass is a frozen dataclass whose fields are its configuration.

    A reward lives in a process of its own: it is pickled there once, may block or crash, and is given every response.
    """

    weight: FiniteFloat = 1.0
    offset: FiniteFloat = 0.0  # added to the weighted value: weight 2 and offset -1 make 1 and 0 into 1 and -1

    # Whether a response on which this reward hangs, crashes or runs out of memory scores 0 instead of failing. Right
    # for a verifier whose `check` passes the prompt: then it is the answer that it cannot bear.
    fails_as_wrong: ClassVar[bool] = False

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a finite number. Whatever it raises makes the sample a failed one."""
        raise NotImplementedError

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt that this reward can never score, its own reference answer included.

        Asked of prompts before the run starts; of a reward that `fails_as_wrong` also once for each group.
        """

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        """Return what this reward takes for the response's answer, to be shown to people; None if it looks for none."""
        return None

    def for_group(self, group: ResponseGroup) -> Reward:
        """Return the reward with what it needs to know of all responses of a group that it is about to score."""
        return self

    def at_limit(self, response_limit: int) -> Reward:
        """Return the reward with what it leaves open set for longest responses of so many tokens."""
        return self

    def check_limit(self, response_limit: int) -> None:
        """Raise UserError if the reward does not fit training with longest responses of so many tokens."""

    def agree(self, prompt: Prompt, first: str, second: str) -> bool:
        """Whether two extracted answers say the same, as a majority vote counts them; neither is known to be right."""
        return same_text(first) == same_text(second)

    def longest_s(self) -> float:
        """Return the seconds that deadlines of its own may take it for one response, beside the time limit."""
        return 0.0

    def spent(self) -> int:
        """Return the tokens that other models used for this reward since this was asked last."""
        return 0

    def prepare(self) -> None:
        """Do slow imports once, so that no sample's time limit pays for them.

        The processes that score are forked from the one that did this: start no threads and open no GPU here.
        """


@dataclass(frozen=True)
@bounded
class RewardConfig:
    """The rewards of a run (their weighted sum is the reward) and how their process is guarded.

    R1-Zero adds accuracy and format with equal weight (R1 eq. 4).
    """

    components: Mapping[str, Reward]
    time_limit_s: Seconds = 10.0  # wall clock of one response; its process is killed after it
    startup_limit_s: Seconds = 120.0  # of the reward process's imports
    memory_limit_mb: NonNegativeInt = 4096  # address space of the reward process; 0: unlimited
    max_failed_share: Probability = 0.05  # the run stops when more than this share of the samples has no reward
    environment: tuple[str, ...] = ()  # names of variables that rewards may see beside PATH, HOME and the like

    def __post_init__(self) -> None:
        if not self.components:
            raise UserError("reward.components", dict(self.components), "needs at least one reward")
        for name, reward in self.components.items():
            if not isinstance(reward, Reward) or type(reward) is Reward:
                allowed = "needs a _target_ that names a subclass of framework.rewards.base.Reward"
                raise UserError(f"reward.components.{name}", reward, allowed)

    @property
    def limit_s(self) -> float:
        """Seconds after which a response's process is killed: the time limit, and what rewards with deadlines need."""
        return self.time_limit_s + sum(reward.longest_s() for reward in self.components.values())

    def at_limit(self, response_limit: int) -> RewardConfig:
        """Return the rewards for longest responses of so many tokens."""
        fitted = {name: reward.at_limit(response_limit) for name, reward in self.components.items()}
        return replace(self, components=fitted)

    def check_limit(self, response_limit: int) -> None:
        """Raise UserError if nothing weighs, or a reward does not fit training with responses of so many tokens."""
        if not any(reward.weight for reward in self.components.values()):
            names = ", ".join(self.components)
            raise UserError("weight of reward.components", 0, f"one of {names} must weigh: all would score the same")
        for reward in self.components.values():
            reward.check_limit(response_limit)

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raise UserError, with file and line, for a prompt that asks for a reward that is not configured.

        Whether they can score its reference answer is asked in their own process: see `IsolatedScorer.check`.
        """
        for prompt in prompts:
            self.check_names(prompt.rewards, f"{prompt.where or f'prompt {prompt.id}'}: rewards")

    def check_names(self, names: Iterable[str], where: str) -> None:
        """Raise UserError, which begins with `where`, for the name of a component that is not configured."""
        for name in names:
            if name not in self.components:
                allowed = f"{did_you_mean(name, self.components)}the run configures {', '.join(self.components)}"
                raise UserError(where, name, allowed)


def score_response(
    components: Mapping[str, Reward],
    prompt: Prompt,
    response: Response,
    given: Mapping[str, float] | None = None,
    before: Callable[[str], None] = lambda name: None,
    anew: Callable[[], tuple[Prompt, Response]] | None = None,
) -> RewardScore:
    """Score one response in this process; never raises for a bad reward, reports it in RewardScore.error.

    Components in `given` are not asked: their values are known. `before` hears of each that is. `anew`: gives each
    reward a copy of its own, so that what one of them does to the prompt or the response changes no other's value.
    """
    values: dict[str, float] = {}
    answer: str | None = None
    for name in prompt.rewards or components:
        if given is not None and name in given:
            values[name] = given[name]
            continue
        before(name)
        try:
            own = (prompt, response) if anew is None else anew()
            if answer is None and (found := components[name].extracted(*own)) is not None:
                answer = _text(found)[:MAX_EXTRACTED_CHARS]
            values[name] = _finite(components[name](*own))
        except Exception as error:  # the verifier is anyone's code: a failed sample is counted, the run goes on
            error_line = describe_error(f"reward {name}", prompt, error)
            return RewardScore(0.0, values, error_line, answer, _spent(components, prompt.rewards or components))
    total = sum(components[n].weight * value + components[n].offset for n, value in values.items())
    tokens = _spent(components, values)
    if not math.isfinite(total):
        told = f"rewards {', '.join(values)} add up to {total}, which is not a finite number"
        return RewardScore(0.0, values, told[:MAX_ERROR_CHARS], answer, tokens)
    return RewardScore(total, values, extracted=answer, tokens=tokens)


def describe_error(what: str, prompt: Prompt, error: Exception) -> str:
    """Return one line with the author's file and line, and print the traceback, which goes to the worker's log."""
    if isinstance(error, UserError):  # says all that there is to say
        return f"{what.rstrip(',')} refuses it: {error}"[:MAX_ERROR_CHARS]
    if isinstance(error, NoAnswer):  # an endpoint's fault, which no line of code explains
        return f"{what} raised NoAnswer: {error}"[:MAX_ERROR_CHARS]
    place = place_of_error(error)
    if place or not isinstance(error, ValueError):
        lines = "".join(line[:MAX_ERROR_CHARS].rstrip("\n") + "\n" for line in traceback.format_exception(error))
        with suppress(Exception):  # the log's disk may be full, or the reward has closed its standard error
            print(f"prompt {prompt.id}: {what} raised:\n{lines}", file=sys.stderr)
    where = f" ({place})" if place else ""
    return f"{what} raised {error_text(error)}"[: MAX_ERROR_CHARS - len(where)] + where


def _spent(components: Mapping[str, Reward], names: Iterable[str]) -> int:
    """Tokens that other models used; a reward that cannot say has used none."""
    tokens = 0
    for name in names:
        with suppress(Exception):
            tokens += int(components[name].spent())
    return tokens


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError(f"`extracted` returned {found!r}, not a text")
    return found


def _finite(value: object) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"returned {value!r}, not a finite number")
    return float(value)
