"""A chat model that a stage asks: one behind an OpenAI-compatible endpoint, or a checkpoint that it samples itself.

Replies of an endpoint are kept in the stage's own directory as they come, so a killed stage asks only for what is left.
What stays without an answer is counted; a model that answers too seldom ends the run, with nothing lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from framework.artifacts import Checkpoint
from framework.bounds import NonNegativeInt, PositiveInt, Probability, Seconds, bounded
from framework.data.reasoning import reopened
from framework.data.selection import Drop
from framework.errors import RunFailed, UserError
from framework.graph.nodes import Runtime
from framework.rewards.endpoint import Endpoint, NoAnswer
from framework.stages.eval_numbers import JudgedGroup
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import SamplingConfig
from framework.types import Prompt, Response, ResponseGroup, ScoredGroup

NO_ANSWER = "no_answer"  # why a request is dropped
NO_VERDICTS = "the judge's replies hold no verdict: take another judge, or give it more judging.max_tokens"
Usable = Callable[[str], bool]


@dataclass(frozen=True)
@bounded
class ChatModel:
    """Which model is asked: one of `url`, `checkpoint` and `node`."""

    url: str = ""  # of an OpenAI-compatible endpoint, for example http://HOST:8000/v1
    model: str = ""  # its name there
    checkpoint: Path | None = None  # a chat model's directory: this stage samples it
    node: str = ""  # a stage of this job whose model is asked
    deadline_s: Seconds = 60.0  # of one request
    retries: NonNegativeInt = 2  # after an error, a late reply, or one that cannot be used
    at_once: PositiveInt = 16  # requests
    key: str = ""  # the environment variable that holds the endpoint's key
    max_failed_share: Probability = 0.05  # the run stops when more requests than this stay without an answer

    def __post_init__(self) -> None:
        given = {name: value for name in ("url", "checkpoint", "node") if (value := getattr(self, name))}
        if len(given) != 1:
            allowed = "must be one of url (with model), checkpoint and node"
            raise UserError("url", ", ".join(given) or None, allowed)
        if self.url:
            self.endpoint.check_url()
            if not self.model:
                raise UserError("model", "", "must name one of the endpoint's models")

    @property
    def endpoint(self) -> Endpoint:
        """Whom to ask."""
        return Endpoint(self.url, self.model, self.deadline_s, self.retries, self.key)

    def given(self) -> Checkpoint | None:
        """Return the checkpoint that is named, if one is; raises UserError unless it is whole."""
        return None if self.checkpoint is None else Checkpoint(self.checkpoint.absolute()).check()

    def look_ahead(self, where: str) -> str:
        """Ask an endpoint for its models; returns a line for the plan. Raises UserError, with `where`, if it fails."""
        if not self.url:
            return ""
        try:
            self.endpoint.check_model(where.rpartition(".")[2])
        except UserError as error:
            raise UserError(f"{where}.{error.where}", error.value, error.allowed) from None
        return f"{where}: {self.model} answers at {self.url}"


@dataclass
class Replies:
    """What an endpoint has said to some requests."""

    groups: list[ResponseGroup] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)  # requests without an answer
    tokens: int = 0  # read and written, by the endpoint's own count; of this attempt

    def ordered(self, requests: Sequence[Prompt]) -> Self:
        """Put the groups into the requests' order."""
        place = {request.id: index for index, request in enumerate(requests)}
        self.groups.sort(key=lambda group: place[group.prompt.id])
        return self


def ask_endpoint(
    chat: ChatModel, requests: Sequence[Prompt], config: SamplingConfig, runtime: Runtime, usable: Usable
) -> Replies:
    """Return the model's replies, `config.n` a request, and which requests have none.

    A reply that is not `usable` is asked for again; the last one stands. Raises RunFailed as soon as more than
    `max_failed_share` of the requests have no answer, Stopped when the run is asked to stop.
    """
    replies, told = Replies(), {"model": chat.model, "n": config.n, **_limits(config)}
    with SampleFile(runtime.work_dir / f"{config.purpose}.jsonl", told) as kept:
        replies.groups += (group.scored.group for group in kept.groups(requests))
        done = {group.prompt.id for group in replies.groups}
        left = [request for request in requests if request.id not in done]

        async def ask_all() -> None:
            async for request, found in _answers(chat, left, config, runtime, usable, replies):
                if isinstance(found, NoAnswer):
                    replies.dropped.append(Drop(request.id, NO_ANSWER))
                    if len(replies.dropped) > chat.max_failed_share * len(requests):
                        allowed = f"more than max_failed_share={chat.max_failed_share:g} allows"
                        raise RunFailed(f"{len(replies.dropped)} requests have no answer, {allowed}: {found}")
                else:
                    group = ResponseGroup(request, tuple(map(_response, found)))
                    kept.append(JudgedGroup(ScoredGroup(group, ()), ()))
                    replies.groups.append(group)
                answered = len(replies.groups) + len(replies.dropped)
                said = f"replies of {chat.model}, {len(replies.dropped)} missing, {replies.tokens:,} tokens"
                runtime.tracker.progress(answered, len(requests), said)

        asyncio.run(ask_all())
    numbers = {"requests": len(requests), "unanswered": len(replies.dropped), "tokens": replies.tokens}
    runtime.tracker.log(0, {f"{config.purpose}/{name}": float(value) for name, value in numbers.items()})
    return replies.ordered(requests)


def judge_replies(
    chat: ChatModel | None,
    sampled: Callable[[], Sequence[ResponseGroup]],
    questions: Sequence[Prompt],
    config: SamplingConfig,
    runtime: Runtime,
    readable: Usable,
) -> dict[str, str]:
    """Return the judge's reply by the question's id: of an endpoint, if `chat` is one, else as `sampled` says.

    A question that an endpoint leaves without an answer is not in it.
    """
    if chat is None or not chat.url:
        groups = sampled()
    else:
        groups = ask_endpoint(chat, questions, config, runtime, readable).groups
    return {group.prompt.id: group.responses[0].text for group in groups}


async def _answers(
    chat: ChatModel,
    requests: Sequence[Prompt],
    config: SamplingConfig,
    runtime: Runtime,
    usable: Usable,
    replies: Replies,
) -> AsyncIterator[tuple[Prompt, list[str] | NoAnswer]]:
    """Yield each request with its replies as they come, a bounded number of them under way."""
    waiting, running = iter(requests), set[asyncio.Task[Any]]()

    def spent(tokens: int) -> None:
        replies.tokens += tokens

    async with chat.endpoint.session(chat.at_once) as session:

        async def one(request: Prompt) -> tuple[Prompt, list[str] | NoAnswer]:
            asked = request.messages or ({"role": "user", "content": request.text},)
            first = config.params(runtime.seed, request).seed or 0

            def ask(place: int) -> Coroutine[Any, Any, str]:
                seed = (first + place) % (1 << 31)
                good = lambda text: usable(reopened(text))  # noqa: E731
                return chat.endpoint.ask_text(session, asked, good, spent, **_limits(config), seed=seed)

            try:
                return request, [reopened(await ask(place)) for place in range(config.n)]
            except NoAnswer as error:
                return request, error

        try:
            while True:
                running |= {asyncio.create_task(one(r)) for r in islice(waiting, chat.at_once - len(running))}
                if not running:
                    return
                finished, running = await asyncio.wait(running, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    yield task.result()
                runtime.stop_if_asked()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _limits(config: SamplingConfig) -> dict[str, float]:
    return {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens}


def _response(text: str) -> Response:
    """A reply whose tokens nobody knows."""
    nothing = np.zeros(0, np.int32)
    return Response(nothing, nothing.astype(np.float32), nothing, "stop", text)
