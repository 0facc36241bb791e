"""Scoring in a process of its own: a reward may hang, crash or exhaust memory without taking the run along."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

from framework.errors import UserError
from framework.rewards.base import RewardConfig, score_response
from framework.rewards.child import CHECK
from framework.rewards.process import RewardLoader, RewardWorkerProcess
from framework.types import Prompt, ResponseGroup, RewardScore

FIRST_CHECK = 3  # times the time limit, for the first prompt of a check: it pays for a task's word lists
MAX_TIMEOUTS = 2  # of one reward in one group; then the rest of the group fails without being tried


class InProcessScorer:
    """Scores in the caller's process, unguarded: for tests and for rewards that are known to be harmless."""

    def __init__(self, config: RewardConfig) -> None:
        self._components = dict(config.components)
        for reward in self._components.values():
            reward.prepare()

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        """Return G scores; a reward that hangs or crashes takes the caller along."""
        components = {name: reward.for_group(group) for name, reward in self._components.items()}
        return tuple(score_response(components, group.prompt, response) for response in group.responses)


class IsolatedScorer:
    """Scores in a child process, with a time limit for each response.

    A response whose reward raises, returns no finite number, exceeds the limit or kills its process scores 0 and says
    so in `error`; the rest of its group is scored by a fresh process, until one reward has exceeded the limit
    MAX_TIMEOUTS times. A reward that `fails_as_wrong` is 0 for such a response, and its other rewards count.

    What rewards print and the tracebacks of what they raise go to `log`, else to stderr. Raises UserError for rewards
    that cannot be loaded (an import that fails, for instance), and RunFailed if their process does not start.
    """

    def __init__(self, config: RewardConfig, log: Path | None = None) -> None:
        self._config, self._log = config, log
        self._lock = threading.Lock()  # the pipe carries one conversation
        self._loader = RewardLoader(config, log)
        self._loader.wait_ready()
        self._worker = RewardWorkerProcess(config, self._loader)

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        """Return G scores; a reward that hangs is told after MAX_TIMEOUTS x limit_s."""
        with self._lock:
            scores: list[RewardScore] = []
            given: dict[str, float] = {}
            timeouts = 0
            while len(scores) < len(group.responses):
                try:
                    self._worker.request(group, len(scores), given)
                    while len(scores) < len(group.responses):
                        scores.append(self._worker.next_score())
                        given = {}
                    return tuple(scores)
                except TimeoutError:
                    place = self._worker.where()
                    reason = f"timed out after {self._config.limit_s:g} s" + (f" ({place})" if place else "")
                    running, timeouts = self._worker.running, timeouts + 1
                    self._replace_worker()
                except (EOFError, BrokenPipeError):
                    running, left = self._worker.running, self._worker.left
                    reason = f"process died: {self._replace_worker()}{left}"
                if running in self._config.components and self._config.components[running].fails_as_wrong:
                    given[running] = 0.0
                    self._note(f"prompt {group.prompt.id}: reward {running} {reason}: counted as wrong")
                    timeouts = 0
                    continue
                given = {}
                what = running if running == CHECK else f"reward {running}".rstrip()
                scores.append(RewardScore(0.0, error=f"{what} {reason}"))
                if timeouts == MAX_TIMEOUTS or running == CHECK:
                    untried = RewardScore(0.0, error=f"{what} {reason}; not tried on this response of the same prompt")
                    scores += [untried] * (len(group.responses) - len(scores))
            return tuple(scores)

    def check(self, prompts: Iterable[Prompt]) -> int:
        """Ask every reward whether it can score each prompt, its reference answer included; returns how many passed.

        `prompts` is sent over as it is and read there. Raises UserError for the first that fails, hangs or kills.
        """
        with self._lock:
            asked = {"id": "", "answer": ""}
            limit_s = FIRST_CHECK * self._config.time_limit_s
            try:
                self._worker.ask("check", prompts)
                while True:
                    found = self._worker.next_answer(limit_s)
                    if "checked" in found:
                        return int(found["checked"])
                    if "fault" in found:
                        where, value, allowed = map(str, found["fault"])
                        place = where or f"prompt {asked['id']}: answer"
                        raise UserError(place, value if where else asked["answer"], allowed)
                    if "id" in found:
                        asked = {name: str(found[name]) for name in ("id", "answer")}
                    else:
                        limit_s = self._config.time_limit_s
            except TimeoutError:
                self._replace_worker()
                reason = f"its rewards did not judge it within {limit_s:g} s"
            except (EOFError, BrokenPipeError, KeyError):
                left = self._worker.left
                reason = f"the process of its rewards died while they judged it: {self._replace_worker()}{left}"
            raise UserError(f"prompt {asked['id'] or 'number 1'}: answer", asked["answer"], reason)

    def votes(self, group: ResponseGroup, name: str) -> tuple[int, ...]:
        """Return for each response the first one whose answer says the same, by reward `name`; -1: it gives none.

        An answer whose comparison hangs or kills stands for itself and is compared by its text alone from then on.
        """
        with self._lock:
            votes: list[int] = []
            kinds: dict[int, tuple[str, bool]] = {}  # first response of a kind -> its answer, whether to compare it
            for place, response in enumerate(group.responses):
                vote, answer, comparable = -1, "", True
                try:
                    self._worker.ask("vote", name, group.prompt, response, tuple(kinds.values()))
                    answer = str(self._worker.next_answer()["answer"] or "")
                    if answer:
                        agrees = int(self._worker.next_answer()["agrees"])
                        vote = list(kinds)[agrees] if 0 <= agrees < len(kinds) else place
                except (TimeoutError, EOFError, BrokenPipeError, KeyError, TypeError, ValueError):
                    self._replace_worker()
                    vote, comparable = place if answer else -1, False
                if vote == place:
                    kinds[place] = answer, comparable
                votes.append(vote)
            return tuple(votes)

    @property
    def pid(self) -> int:
        """Process id of the present child that scores."""
        return self._worker.pid

    def close(self) -> None:
        """Kill the children and everything they started."""
        self._worker.kill()
        self._loader.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, text: str) -> None:
        """Write a line where the rewards' own output goes."""
        with suppress(OSError), self._log.open("a") if self._log else nullcontext(sys.stderr) as file:
            print(text, file=file, flush=True)

    def _replace_worker(self) -> str:
        """Kill the worker, start the next one and return how the old one ended."""
        ending = self._worker.kill()
        try:
            self._worker = RewardWorkerProcess(self._config, self._loader)
        except (EOFError, TimeoutError, KeyError):  # the loader is gone too
            self._loader.kill()
            self._loader = RewardLoader(self._config, self._log)
            self._loader.wait_ready()
            self._worker = RewardWorkerProcess(self._config, self._loader)
        return ending
