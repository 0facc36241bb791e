"""Generative judge: a chat model behind any OpenAI-compatible endpoint says how good a response is."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from framework.bounds import Bound, NonNegativeInt, PositiveInt, Seconds, bounded
from framework.data.judging import question_for, read_verdict
from framework.errors import UserError
from framework.rewards.base import Reward
from framework.rewards.endpoint import Endpoint, NoAnswer, NoReply
from framework.types import Prompt, Response, ResponseGroup

if TYPE_CHECKING:
    from aiohttp import ClientSession

MAX_SILENT = 2  # responses of one group that a judge may leave without any reply; the others are not asked about
_GRADE = re.compile(r"\[\[\s*(\d{1,2})\s*\]\]")
_RIGHT = re.compile(r"\[\[\s*(correct|incorrect)\s*\]\]")
_REFERENCE = """Below are a question, its reference answer and a student's answer. Does the student's final answer say \
the same as the reference? How it was found, its wording and its length do not count. An answer that gives several \
results, or none, is incorrect. Think briefly, then end with one verdict: [[correct]] or [[incorrect]].

Question:
{question}

Reference answer:
{reference}

Student's answer:
{answer}"""
_POINTS = """Grade the answer below from 1 (useless or wrong) to 10 (could not be better): is it right, to the point, \
complete, and in the request's language? Length does not count. Think briefly, then end with one grade in double \
brackets, for example [[4]].

Request:
{question}
{reference}
Answer:
{answer}"""


@dataclass(frozen=True, kw_only=True)
@bounded
class Judge(Reward):
    """What a chat model says of a response.

    `reference`: 1 if the answer says the same as the prompt's reference, else 0 (R1v2 B.3.3, Listing 4: prompts that
    no rule can judge). `points`: a grade of 1 to 10, as 0 to 1. `pairs`: the mean margin over the prompt's reference
    answer in `asked` judgements, half of them with the response as A, in random order; -1 to 1 (R1v2 B.3: four calls,
    their mean; the five grades are Arena-Hard's).

    A verdict is read from a reply that says exactly one, behind its reasoning. Any other reply, a server's error and a
    request past its deadline are tried again; when tries are used up the response has no score, and counts as failed
    (`reward.max_failed_share`). Where two responses of a group get no reply in time the others of it fail unasked.
    """

    url: str  # of the endpoint, for example http://judge:8000/v1
    model: str
    mode: Literal["reference", "points", "pairs"] = "reference"
    sees: Literal["summary", "all"] = "summary"  # what follows the reasoning, or the reasoning too
    asked: PositiveInt = 4  # judgements of one pair
    deadline_s: Seconds = 60.0  # of one request; all tries have their time beside reward.time_limit_s
    retries: NonNegativeInt = 2
    max_tokens: PositiveInt = 1024  # of a judge's reply
    temperature: Annotated[float, Bound(least=0)] = 0.0
    key: str = ""  # the environment variable that holds the endpoint's key; name it in reward.environment too

    def __post_init__(self) -> None:
        self._endpoint.check_url()

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return the verdict as a number. Raises NoAnswer."""
        answer = prompt.opened + response.text
        if self.sees == "summary":
            answer = answer.rpartition("</think>")[2] if "</think>" in answer or "<think>" not in answer else ""
        if not answer.strip():
            return -1.0 if self.mode == "pairs" else 0.0
        return asyncio.run(self._verdict(prompt, answer.strip()))

    def for_group(self, group: ResponseGroup) -> Reward:
        """Return the judge as it is asked about one group: a silent one makes nobody wait for each response."""
        return _OfGroup(weight=self.weight, offset=self.offset, judge=self)

    def longest_s(self) -> float:
        """Return the seconds of all tries."""
        return self._endpoint.longest_s()

    def check(self, prompt: Prompt) -> None:
        """Raise UserError for a prompt without the reference answer that the judge is to be given."""
        if self.mode != "points" and not prompt.answer.strip():
            raise UserError(f"prompt {prompt.id}: answer", prompt.answer, f"the judge needs one for mode {self.mode}")

    def prepare(self) -> None:
        """Ask the endpoint which models it has; raises UserError if it does not answer, or lacks the model."""
        self._endpoint.check_model("judge")

    def spent(self) -> int:
        """Return the tokens that judges used since this was asked last."""
        tokens, _spent[:] = sum(_spent), []
        return tokens

    async def _verdict(self, prompt: Prompt, answer: str) -> float:
        async with self._endpoint.session() as session:
            if self.mode == "pairs":
                orders = _orders(f"{prompt.id} {answer}", self.asked)
                asks = [self._ask(session, *self._pair(prompt, answer, first)) for first in orders]
                return sum(await asyncio.gather(*asks)) / len(asks) / 2
            reference = f"\nA good answer, for comparison:\n{prompt.answer}\n" if prompt.answer.strip() else ""
            fields = {"question": prompt.text, "answer": answer}
            if self.mode == "points":
                return await self._ask(session, _POINTS.format(**fields, reference=reference), _read_points)
            return await self._ask(session, _REFERENCE.format(**fields, reference=prompt.answer), _read_right)

    def _pair(self, prompt: Prompt, answer: str, first_is_a: bool) -> tuple[str, Callable[[str], float | None]]:
        asked = question_for(prompt, prompt.id, answer, prompt.answer, first_is_a)
        return str(asked.messages[-1]["content"]), partial(read_verdict, first_is_a=first_is_a)

    async def _ask(self, session: ClientSession, question: str, read: Callable[[str], float | None]) -> float:
        asked = ({"role": "user", "content": question},)
        limits = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return await self._endpoint.ask(session, asked, read, _spent.append, **limits)

    @property
    def _endpoint(self) -> Endpoint:
        return Endpoint(self.url, self.model, self.deadline_s, self.retries, self.key)


@dataclass(frozen=True, kw_only=True)
class _OfGroup(Reward):
    """A judge that is not asked about the rest of a group when MAX_SILENT responses in a row got no reply in time."""

    judge: Judge
    silent: list[str] = field(default_factory=list)  # why each of them got none

    def __call__(self, prompt: Prompt, response: Response) -> float:
        if len(self.silent) >= MAX_SILENT:
            raise NoAnswer(f"not asked, as {MAX_SILENT} responses of this prompt waited in vain: {self.silent[-1]}")
        try:
            value = self.judge(prompt, response)
        except NoReply as error:
            self.silent.append(str(error))
            raise
        self.silent.clear()
        return value

    def spent(self) -> int:
        return self.judge.spent()


_spent: list[int] = []  # tokens of each reply since `spent` was asked last; a process scores one response at a time


def _orders(seed: str, asked: int) -> list[bool]:
    """Whether the response is A, for each judgement: half of them, in an order that the texts alone decide."""
    orders = [place % 2 == 0 for place in range(asked)]
    rng = random.Random(seed)
    if asked % 2 and rng.random() < 0.5:
        orders = [not first for first in orders]
    rng.shuffle(orders)
    return orders


def _read_points(reply: str) -> float | None:
    found = set(_GRADE.findall(reply.rpartition("</think>")[2]))
    grade = int(found.pop()) if len(found) == 1 else 0
    return (grade - 1) / 9 if 1 <= grade <= 10 else None


def _read_right(reply: str) -> float | None:
    found = set(_RIGHT.findall(reply.rpartition("</think>")[2]))
    return float(found == {"correct"}) if len(found) == 1 else None
