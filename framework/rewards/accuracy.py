"""Accuracy reward: is the final answer right, by the task's own verifier?"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar

from framework.bounds import bounded
from framework.data.entries import decode_entry, encode_entry
from framework.data.tasks import same_text
from framework.errors import UserError, did_you_mean
from framework.rewards import options
from framework.rewards.answers import CLOSE, OPEN, check_place, extract_answer
from framework.rewards.base import Reward
from framework.rewards.maths.quantities import after_phrase
from framework.rewards.maths.verdict import is_copy, math_answers_agree
from framework.types import Prompt, Response

MATH_TASKS = ("math", "gsm8k", "aime", "minerva", "olympiad", "word_problems")
TEXT_TASKS = ("logic",)  # of data.bilingual: one word is right
THOUGHT = "</think>"
_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?")  # 011 is no number: it may be a string of bits
CHOICE = options.Options()
Verifier = Callable[[str, dict[str, Any]], float]


@dataclass(frozen=True, kw_only=True)
@bounded
class Accuracy(Reward):
    """1 if the response's answer is right, else 0 (R1: binary).

    A task named in `math_tasks` compares its answer to the prompt's reference as mathematics (see
    `framework.rewards.maths`); an expression copied from the question is no answer. Task `options` is multiple choice
    (`framework.rewards.options`). Any other task must be a reasoning-gym data set, whose own verifier judges; only its
    full score counts as right.

    `answer_in` says where the answer stands: see `extract_answer`. With `last`, what follows the last `</think>` goes
    before what stands in the reasoning, and a finished response to a mathematical task that marks no answer is taken at
    its last number. Of the tasks in TEXT_TASKS the answer is a word: unmarked, it is the last line, or what follows
    "the answer is" there.
    """

    math_tasks: tuple[str, ...] = MATH_TASKS
    answer_in: str = "last"  # tag, boxed, hashes, number, regex:…, or whichever of the first three ends last

    fails_as_wrong: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_place(self.answer_in)

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return 1.0 or 0.0. Raises UserError for a task that no verifier knows or a reference that it cannot judge."""
        answer = self.extracted(prompt, response)
        if not answer:
            return 0.0
        try:
            return float(self.is_right(prompt, answer))
        except Exception:
            self.check(prompt)  # where the reference passes, it is the answer that the verifier choked on
            return 0.0

    def extracted(self, prompt: Prompt, response: Response) -> str | None:
        """Return the answer that the response gives, or None."""
        if prompt.task == options.TASK:
            return CHOICE.extracted(prompt, response)
        text = prompt.opened + response.text
        said = text.rpartition(THOUGHT)[2]
        if (
            self.answer_in == "last"
            and THOUGHT in text
            and prompt.task in (*self.math_tasks, *TEXT_TASKS)
            and said.strip()
        ):
            final = self.extracted(replace(prompt, opened=""), replace(response, text=said))
            if final is not None:  # what is boxed while thinking is not what is said at last
                return final
        answer = extract_answer(text, self.answer_in)
        marked = answer is not None or OPEN in text or CLOSE in text or response.finish_reason != "stop"
        if self.answer_in == "last" and not marked and prompt.task in self.math_tasks:
            return extract_answer(text, "number")
        if self.answer_in == "last" and not marked and prompt.task in TEXT_TASKS:
            line = text.rstrip()[-200:].rpartition("\n")[2].replace("*", "").strip(" .。")
            return after_phrase(line) or line or None
        return answer

    def agree(self, prompt: Prompt, first: str, second: str) -> bool:
        """Whether two answers are of one value: as mathematics, or as plain numbers, or as text.

        A verifier of reasoning-gym is not asked: many know any right answer, and a vote must not.
        """
        if same_text(first) == same_text(second):
            return True
        if prompt.task in self.math_tasks:
            return any(_agrees(one, other) for one, other in ((first, second), (second, first)))
        return all(map(_NUMBER.fullmatch, (first, second))) and Fraction(first) == Fraction(second)

    def is_right(self, prompt: Prompt, answer: str) -> bool:
        """Whether the task's verifier accepts `answer`; raises whatever it raises."""
        if prompt.task == options.TASK:
            return answer == options.reference_letter(prompt)
        if prompt.task in TEXT_TASKS:
            return same_text(answer.strip(" .。")) == same_text(prompt.answer)
        if prompt.task not in self.math_tasks:
            return gym_score(prompt, answer) >= 1.0
        return math_answers_agree(prompt.answer, answer) and not is_copy(prompt.answer, answer, prompt.text)

    def check(self, prompt: Prompt) -> None:
        """Raise UserError unless the task has a verifier and the prompt's own reference answer scores 1."""
        if prompt.task == options.TASK:
            return CHOICE.check(prompt)
        if prompt.task not in (*self.math_tasks, *TEXT_TASKS):
            from reasoning_gym.factory import DATASETS

            if prompt.task not in DATASETS:
                known = f"{did_you_mean(prompt.task, DATASETS)}must be a reasoning-gym data set or one of math_tasks"
                raise UserError(f"prompt {prompt.id}: task", prompt.task, f"{known}: {', '.join(self.math_tasks)}")
        try:
            right, why = self._reference_is_right(prompt), "it does not score 1 against itself"
        except Exception as error:
            right, why = False, f"the verifier raises {type(error).__name__}: {error}"
        if not right:
            raise UserError(f"prompt {prompt.id}: answer", prompt.answer, f"cannot be judged by {prompt.task}: {why}")

    def _reference_is_right(self, prompt: Prompt) -> bool:
        if prompt.task in TEXT_TASKS:
            return bool(prompt.answer.strip())
        if prompt.task in self.math_tasks:
            return math_answers_agree(prompt.answer, prompt.answer)
        return gym_score(prompt, prompt.answer) >= 1.0

    def prepare(self) -> None:
        """Import the verifiers: about a second each."""
        import reasoning_gym  # noqa: F401

        if self.math_tasks:
            import math_verify

            # it warns that its time limit is off, which is on purpose: the reward process has one
            logging.getLogger("math_verify").setLevel(logging.ERROR)
            math_verify.parse("$1$", parsing_timeout=None)


def _agrees(first: str, second: str) -> bool:
    try:
        return math_answers_agree(first, second)
    except ValueError:  # there is nothing in the first that another could agree with
        return False


def gym_score(prompt: Prompt, answer: str) -> float:
    """Return the task's own score of `answer`, in [0, 1]. A prompt without a stored entry is judged by its answer.

    Each call reads the record anew: a verifier may change what it is given.
    """
    entry: dict[str, Any] = {"question": prompt.text, "answer": prompt.answer, "metadata": {}}
    if prompt.entry:
        entry = decode_entry(prompt.entry)
    params = entry.get("params")
    return _gym_verifier(prompt.task, encode_entry(params if isinstance(params, dict) else {}))(answer, entry)


@cache
def _gym_verifier(task: str, params: str) -> Verifier:
    """The verifier of a data set with these parameters: some look at theirs (digits kept, numbers allowed, words)."""
    import reasoning_gym

    try:
        verifier: Verifier = reasoning_gym.create_dataset(task, **decode_entry(params)).score_answer
    except ValueError:
        raise ValueError(f"task {task!r} is neither a reasoning-gym data set nor one of math_tasks") from None
    return verifier
