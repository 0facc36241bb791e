"""Worked solutions for the pretraining text: what a base model has read before reinforcement learning.

Like text found in the wild, the quality depends on the place. Bare questions come with `careful` solutions, step by
step and right: there the model learns to solve. Under R1-Zero's template stands a mixture: `careless` solutions slip on
the way, `hasty` ones guess, `plain` ones carry no tags. So the base model can solve the tasks, but where it is asked
it mostly does not: what reinforcement learning then amplifies.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from framework.bounds import Probability, bounded
from framework.data.bilingual import GENERAL, NAMES
from framework.data.entries import decode_entry, encode_entry
from framework.data.general import KINDS
from framework.data.templates import render_r1_zero
from framework.errors import UserError, did_you_mean
from framework.types import Prompt

_SENTENCE = re.compile(r"[^.。]+[.。]?")  # of the steps: none holds a number with a point


@dataclass(frozen=True)
@bounded
class StyleConfig:
    """Share of documents that carry R1-Zero's template, and the shares of the styles among those (`mixed` apart)."""

    template_share: Probability = 0.2
    careful: Probability = 0.25
    careless: Probability = 0.20
    hasty: Probability = 0.35
    plain: Probability = 0.20
    mixed: Probability = 0.3  # of the bilingual tasks' documents: their steps change the language

    def __post_init__(self) -> None:
        shares = (self.careful, self.careless, self.hasty, self.plain)
        if abs(sum(shares) - 1) > 1e-6:
            raise UserError("data.styles", shares, "must be four shares that sum to 1")


@dataclass(frozen=True)
class Solution:
    """Reasoning steps and a final answer, as text."""

    steps: str
    answer: str


def _sum(prompt: Prompt, slip: random.Random | None) -> Solution:
    """Term by term, 7 + 8 - 9 -> 7+8=15 15-9=6; two-digit terms as tens and ones, see `_add_large`."""
    expression = decode_entry(prompt.entry)["metadata"]["expression"].split()
    total, steps = int(expression[0]), []
    for sign, term in zip(expression[1::2], map(int, expression[2::2]), strict=True):
        if term > 10:
            total, parts = _add_large(total, sign, term, slip)
            steps += parts
        else:
            before, total = total, _slipped(_combine(total, term, sign), slip)
            steps.append(f"{before}{sign}{term}={total}")
    return Solution(" ".join(steps), str(total))


def _add_large(total: int, sign: str, term: int, slip: random.Random | None) -> tuple[int, list[str]]:
    """Tens and ones apart, then together: 47 + 38 -> 40+30=70 7+8=15 70+15=85."""
    tens = _combine(total - total % 10, term - term % 10, sign)
    ones = _slipped(_combine(total % 10, term % 10, sign), slip)
    parts = [
        f"{total - total % 10}{sign}{term - term % 10}={tens}",
        f"{total % 10}{sign}{term % 10}={ones}",
        f"{tens}{ones:+}={tens + ones}",
    ]
    return tens + ones, parts


def _simple_equations(prompt: Prompt, slip: random.Random | None) -> Solution:
    """Take the constants to the right, then divide: 8*e + 5 = 61 -> 61-5=56 56/8=7."""
    metadata = decode_entry(prompt.entry)["metadata"]
    left, right = metadata["equation"].split(" = ")
    total, factor, steps = int(right), 0, []
    for sign, term in re.findall(r"(-?)\s*([\w*]+)", left.replace("+ ", "")):
        if metadata["variable"] in term:
            number = term.replace(metadata["variable"], "").strip("*") or "1"
            factor += int(sign + number)
        else:
            undo = "+" if sign else "-"
            before, total = total, _slipped(_combine(total, int(term), undo), slip)
            steps.append(f"{before}{undo}{term}={total}")
    answer = total // factor
    if factor != 1 or not steps:
        steps.append(f"{total}/{factor}={answer}")
    return Solution(" ".join(steps), str(answer))


def _combine(left: int, right: int, sign: str) -> int:
    return left + right if sign == "+" else left - right


def _slipped(value: int, slip: random.Random | None) -> int:
    """The value, or with a careless writer often one close to it."""
    return value + slip.choice((-2, -1, 1, 2)) if slip is not None and slip.random() < 0.7 else value


def _spell_backward(prompt: Prompt, slip: random.Random | None) -> Solution:
    """Spell the word, then its letters from last to first."""
    letters = list(decode_entry(prompt.entry)["metadata"]["word"])
    backward = letters[::-1]
    if slip is not None and len(set(backward)) > 1:
        first, second = slip.sample(range(len(backward)), 2)
        backward[first], backward[second] = backward[second], backward[first]
    return Solution(f"{' '.join(letters)} , {' '.join(backward)}", "".join(backward))


def _told(prompt: Prompt, slip: random.Random | None) -> Solution:
    """The steps that came with a bilingual task's question, in its language; a slip ends in a wrong answer."""
    metadata = decode_entry(prompt.entry)["metadata"]
    answer = slip.choice(metadata["wrong"]) if slip is not None and slip.random() < 0.7 else prompt.answer
    return Solution(metadata["steps"][metadata["language"]], answer)


def _general(prompt: Prompt, slip: random.Random | None) -> Solution:
    """What a request that no rule judges is answered with, without reasoning."""
    return Solution("", prompt.answer if slip is None else str(prompt.columns["poor"]))


def _mix(prompt: Prompt) -> Prompt:
    """A bilingual task whose steps begin in the other language and end in its own."""
    entry = decode_entry(prompt.entry)
    metadata = entry["metadata"]
    own, other = (metadata["steps"][key] for key in sorted(metadata["steps"], key=lambda k: k != metadata["language"]))
    ends = _SENTENCE.findall(own)
    mixed = "".join([_SENTENCE.findall(other)[0], *(ends[1:] or ends)])
    return replace(
        prompt, entry=encode_entry({**entry, "metadata": {**metadata, "steps": {metadata["language"]: mixed}}})
    )


SOLVERS: Mapping[str, Callable[[Prompt, random.Random | None], Solution]] = MappingProxyType(
    {
        "basic_arithmetic": _sum,
        "chain_sum": _sum,
        "simple_equations": _simple_equations,
        "spell_backward": _spell_backward,
        **dict.fromkeys(set(NAMES) - {GENERAL}, _told),
        **dict.fromkeys((GENERAL, *(f"general_{kind}" for kind in KINDS)), _general),
    }
)


def guess(prompt: Prompt, rng: random.Random) -> str:
    """Return an answer of the right kind that is mostly wrong."""
    if prompt.task.startswith(f"{GENERAL}_"):
        return str(prompt.columns["poor"])
    if prompt.task in NAMES:
        return str(rng.choice(decode_entry(prompt.entry)["metadata"]["wrong"]))
    try:
        return str(int(prompt.answer) + rng.choice((-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20)))
    except ValueError:
        return "".join(rng.sample(prompt.answer, len(prompt.answer)))


def check_solvable(task: str) -> None:
    """Raise UserError unless there are worked solutions for a task."""
    if task not in SOLVERS:
        allowed = f"{did_you_mean(task, SOLVERS)}worked solutions exist for {', '.join(SOLVERS)}"
        raise UserError(f"data.tasks.{task}", task, allowed)


def document(prompt: Prompt, styles: StyleConfig, rng: random.Random) -> str:
    """Write one document: question and solution in a style drawn from `styles`. Raises UserError without a solver."""
    check_solvable(prompt.task)
    solve = SOLVERS[prompt.task]
    if solve is _told and rng.random() < styles.mixed:
        prompt = _mix(prompt)
    if rng.random() >= styles.template_share:
        return f"User: {prompt.text} Assistant: {tagged(solve(prompt, None))}"
    head, draw = render_r1_zero(prompt.text), rng.random()
    if draw < styles.careful:
        return f"{head} {tagged(solve(prompt, None))}"
    if draw < styles.careful + styles.careless:
        return f"{head} {tagged(solve(prompt, rng))}"
    if draw < styles.careful + styles.careless + styles.hasty:
        return f"{head} {tagged(Solution('easy', guess(prompt, rng)))}"
    return f"{head} {solve(prompt, None).answer}"


def tagged(solution: Solution) -> str:
    """Reasoning and answer in R1-Zero's tags."""
    return f"<think> {solution.steps} </think> <answer> {solution.answer} </answer>"
