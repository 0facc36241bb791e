"""The reward worker: a Ray actor around an isolated scorer, and the rule for stopping when too many samples fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from framework.actors.pulse import beat
from framework.errors import RunFailed
from framework.rewards.base import RewardConfig
from framework.rewards.isolation import IsolatedScorer
from framework.stored import Scored
from framework.types import Prompt, Response, ResponseGroup, RewardScore

P = ParamSpec("P")
T = TypeVar("T")


class RewardWorker:
    """Scores response groups as they arrive. A plain class: wrap it with `ray.remote` and `max_restarts=-1`.

    Losing the actor loses nothing but its current group: the caller sees a RayActorError and asks another worker.
    """

    def __init__(self, config: RewardConfig, log: Path | None = None) -> None:
        self._config, self._log = config, log  # the log: where what rewards print goes
        beat()

    @cached_property
    def _scorer(self) -> IsolatedScorer:  # also without `start`: Ray restarts an idle worker unnoticed
        return IsolatedScorer(self._config, self._log)

    def start(self) -> None:
        """Load the rewards; raises UserError if they cannot be loaded, RunFailed if their process does not start."""
        _ = self._scorer

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        """Return G scores; bad rewards are reported in them, never raised."""
        return self._scorer.score(group)

    def judge(self, group: ResponseGroup, names: tuple[str, ...]) -> tuple[RewardScore, ...]:
        """Return G scores, each with its vote by the first of these rewards that scores the prompt.

        See `IsolatedScorer.votes`; where none of them scores it, nobody votes.
        """
        asked = group.prompt.rewards or tuple(self._config.components)
        name = next((name for name in names if name in asked), None)
        votes = (-1,) * len(group.responses) if name is None else self._scorer.votes(group, name)
        scores = self._scorer.score(group)
        return tuple(replace(score, vote=vote) for score, vote in zip(scores, votes, strict=True))

    def score_stored(self, prompt: Prompt, votes_by: tuple[str, ...], *responses: Response) -> tuple[RewardScore, ...]:
        """As `judge`, or without names `score`, of responses that were fetched for this call."""
        group = ResponseGroup(prompt, responses)
        return self.judge(group, votes_by) if votes_by else self.score(group)

    def ping(self) -> str:
        """Answer a health check."""
        return "pong"

    def apply(self, func: Callable[Concatenate[RewardWorker, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `func` on this worker (what Ray's FaultTolerantActorManager asks for)."""
        return func(self, *args, **kwargs)

    def close(self) -> None:
        """Kill the reward process."""
        self._scorer.close()


def check_scores(groups: Sequence[Scored], max_share: float) -> None:
    """Raise RunFailed if more than `max_share` of the groups' responses could not be scored."""
    errors = failures(groups)
    total = sum(len(scored.scores) for scored in groups)
    check_failed_share(len(errors), total, max_share, errors[0] if errors else "")


def failures(groups: Sequence[Scored]) -> list[str]:
    """What went wrong with each response that could not be scored, with its prompt's id."""
    return [
        f"prompt {scored.group.prompt.id}: {score.error}" for scored in groups for score in scored.scores if score.error
    ]


def check_failed_share(failed: int, total: int, max_share: float, example: str = "") -> None:
    """Raise RunFailed, with one sample's error as `example`, if more than `max_share` of `total` samples failed."""
    if failed > max_share * total:
        reason = f"; for example: {' '.join(example.split())}" if example else ""
        allowed = f"more than reward.max_failed_share={max_share:g} allows"
        raise RunFailed(f"{failed} of {total} samples have no reward, {allowed}{reason}")


def check_refills(refilled: int, most: int, prompts: int, live: int) -> None:
    """Raise RunFailed if more groups without signal were replaced than `most` batches of `prompts`, `live` at once."""
    if refilled > most * prompts * live:
        bound = f"stage.grpo.max_refill_batches={most} of {prompts} prompts"
        raise RunFailed(
            f"no batch has come together: more groups than {bound} had rewards all equal; take prompts that the "
            "policy solves neither always nor never, larger groups (stage.grpo.group_size), or "
            "algorithm.filter_on=null"
        )
