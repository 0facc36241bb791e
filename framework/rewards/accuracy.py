"""Accuracy reward: is the final answer right, by the task's own verifier?"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from framework.errors import UserError, did_you_mean
from framework.rewards.base import Reward
from framework.types import Prompt, Response

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
Verifier = Callable[[str, dict[str, Any]], float]


@dataclass(frozen=True, kw_only=True)
class Accuracy(Reward):
    """1 if the last `<answer>…</answer>` of the response is right, else 0 (R1: binary).

    A task named in `math_tasks` compares its answer to the prompt's reference with math-verify (numbers, LaTeX,
    expressions, sets). Any other task must be a reasoning-gym data set, and only its full score counts as right.
    """

    math_tasks: tuple[str, ...] = ("math",)

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0; raises ValueError for a task that no verifier knows."""
        answer = extract_answer(response.text)
        if not answer:
            return 0.0
        if prompt.task in self.math_tasks:
            return float(math_answers_agree(prompt.answer, answer))
        return float(gym_score(prompt, answer) >= 1.0)

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a task that no verifier knows."""
        if prompt.task not in self.math_tasks:
            from reasoning_gym.factory import DATASETS

            if prompt.task not in DATASETS:
                known = f"{did_you_mean(prompt.task, DATASETS)}must be a reasoning-gym data set or one of math_tasks"
                raise UserError(f"prompt {prompt.id}: task", prompt.task, f"{known}: {', '.join(self.math_tasks)}")

    def prepare(self) -> None:
        """Import the verifiers: about a second each."""
        import reasoning_gym  # noqa: F401

        if self.math_tasks:
            # it warns that its time limit is off, which is on purpose: the reward process has one
            logging.getLogger("math_verify").setLevel(logging.ERROR)
            math_answers_agree("1", "1")


def extract_answer(text: str) -> str | None:
    """Return what the last answer tags enclose, stripped; None without a closed pair."""
    answers = _ANSWER.findall(text)
    return answers[-1].strip() if answers else None


def gym_score(prompt: Prompt, answer: str) -> float:
    """Return the task's own score of `answer`, in [0, 1]. A prompt without a stored entry is judged by its answer."""
    entry = (
        json.loads(prompt.entry) if prompt.entry else {"question": prompt.text, "answer": prompt.answer, "metadata": {}}
    )
    return _gym_verifier(prompt.task)(answer, entry)


@cache
def _gym_verifier(task: str) -> Verifier:
    import reasoning_gym

    try:
        verifier: Verifier = reasoning_gym.get_score_answer_fn(task)
    except ValueError:
        raise ValueError(f"task {task!r} is neither a reasoning-gym data set nor one of math_tasks") from None
    return verifier


def math_answers_agree(reference: str, answer: str) -> bool:
    """Compare two math answers by value; raises ValueError if the reference is no mathematics.

    No time limit of its own: math-verify's needs signals and the main thread.
    """
    import math_verify

    gold = _parse_math(reference)
    if not gold:
        raise ValueError(f"math-verify cannot read the reference answer {reference!r}")
    return bool(math_verify.verify(gold, _parse_math(answer), timeout_seconds=None))


def _parse_math(text: str) -> list[Any]:
    """Read the whole of `text` as mathematics if possible, else the expression found in it."""
    import math_verify

    bare = text.replace("\\boxed", "").strip().strip("$")
    whole: list[Any] = math_verify.parse(f"${bare}$", [math_verify.LatexExtractionConfig()], parsing_timeout=None)
    read = whole and not isinstance(whole[0], str)  # what it cannot read as an expression comes back as text
    return whole if read else math_verify.parse(text, parsing_timeout=None) or whole
