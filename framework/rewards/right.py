"""Accuracy of any prompt: by hidden tests, by its options, or by its task's verifier, as the prompt's data says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from framework.bounds import bounded
from framework.rewards.accuracy import MATH_TASKS, TEXT_TASKS, Accuracy
from framework.rewards.base import Reward
from framework.rewards.code import Code
from framework.rewards.code_tests import has_tests
from framework.rewards.options import TASK, Options
from framework.types import Prompt, Response

DOMAINS = ("math", "programs", "options", "logic", "general")


@dataclass(frozen=True, kw_only=True)
@bounded
class Right(Reward):
    """1 if the response is right, else 0 (R1v2 B.3.1: mathematics, options of STEM questions, code).

    Programs against tests where the prompt has some, the letter of an option where it lists options, else an answer by
    the task's verifier. One name for all of them is what evaluation and rejection sampling ask for.
    """

    answers: Accuracy = Accuracy()
    options: Options = Options()
    code: Code = Code()

    fails_as_wrong: ClassVar[bool] = True

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0."""
        return self._judge(prompt)(prompt, response)

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt whose judge cannot judge it."""
        self._judge(prompt).check(prompt)

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        """Return the answer, the letter or the program."""
        return self._judge(prompt).extracted(prompt, response)

    def agree(self, prompt: Prompt, first: str, second: str) -> bool:
        """Whether two of them say the same."""
        return self._judge(prompt).agree(prompt, first, second)

    def prepare(self) -> None:
        """Prepare all three: which ones the prompts need is not known yet."""
        for judge in (self.answers, self.options, self.code):
            judge.prepare()

    def _judge(self, prompt: Prompt) -> Reward:
        if has_tests(prompt) or prompt.task == "code":  # one without tests is refused by the name of what it lacks
            return self.code
        return self.options if _has_options(prompt) else self.answers


def domain_of(prompt: Prompt) -> str:
    """Return what a prompt is about, as R1's data is divided (R1 v2 Tables 4 and 5): DOMAINS, or another word.

    A task of reasoning-gym belongs to the part of it where it stands (graphs, games, …); one that nobody knows, to
    its own name.
    """
    if prompt.task.split("_")[0] == "general":
        return "general"
    if has_tests(prompt):
        return "programs"
    if _has_options(prompt):
        return "options"
    if prompt.task in TEXT_TASKS:
        return "logic"
    if prompt.task in MATH_TASKS:
        return "math"
    from reasoning_gym.factory import DATASETS

    part = DATASETS[prompt.task][0].__module__.split(".")[1] if prompt.task in DATASETS else prompt.task
    return "math" if part in ("arithmetic", "algebra", "geometry", "probability") else part


def _has_options(prompt: Prompt) -> bool:
    return prompt.task == TASK or bool(prompt.columns.get("options"))
