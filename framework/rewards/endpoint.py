"""A chat model behind an OpenAI-compatible endpoint: vLLM (`framework serve`), or another service of that protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from framework.errors import UserError

if TYPE_CHECKING:
    from aiohttp import ClientSession

MAX_REPLY = 1 << 22  # bytes of one HTTP reply
PAUSE_S = 0.1  # half of the wait before a second try; each further one waits twice as long
LONGEST_PAUSE_S = 5.0
WARMER = 0.5  # temperature of a second try, at least: a greedy model would say the same again
T = TypeVar("T")


class NoAnswer(RuntimeError):
    """The model did not say what it was asked, as often as it was asked."""


class NoReply(NoAnswer):
    """It said nothing at all before any of the deadlines."""


@dataclass(frozen=True)
class Endpoint:
    """One model of an endpoint, and how long a request to it may take."""

    url: str  # for example http://judge:8000/v1
    model: str
    deadline_s: float = 60.0  # of one request
    retries: int = 2
    key: str = ""  # the environment variable that holds the endpoint's key

    def longest_s(self) -> float:
        """Return the seconds that all tries of one question may take, the waits between them included."""
        return (self.retries + 1) * self.deadline_s + self.retries * LONGEST_PAUSE_S

    def check_url(self) -> None:
        """Raise UserError unless the url is one; nothing is asked."""
        if not re.match(r"https?://\S+$", self.url):
            allowed = "must be the address of an OpenAI-compatible endpoint: http://HOST:PORT/v1"
            raise UserError("url", self.url, allowed)

    def check_model(self, role: str) -> None:
        """Ask the endpoint which models it has; raises UserError if it does not answer, or lacks the model or a key."""
        if self.key and not os.environ.get(self.key):
            allowed = "must be an environment variable that is set; for a reward, name it in reward.environment too"
            raise UserError("key", self.key, allowed)
        try:
            names = asyncio.run(self._models())
        except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            said = str(error) or f"no answer within {self.deadline_s:g} s"
            raise UserError("url", self.url, f"no {role} answers there: {said}"[:300]) from None
        if self.model not in names:
            raise UserError("model", self.model, f"the endpoint has {', '.join(names[:9]) or 'none'}")

    async def ask(
        self,
        session: ClientSession,
        messages: Sequence[Mapping[str, Any]],
        read: Callable[[str], T | None],
        spent: Callable[[int], None],
        **sampling: float,
    ) -> T:
        """Ask until `read` makes something of a reply, which is returned; `spent` hears of each reply's tokens.

        `sampling`: max_tokens, temperature and the like. After a reply that is no good the next try has another seed
        and is not greedy, or it would be answered alike. Raises NoAnswer, at once for what asking again cannot mend;
        NoReply if no try was answered in time.
        """
        body = {"model": self.model, "messages": list(messages), **sampling}
        why, late = "", 0
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST_PAUSE_S, PAUSE_S * 2**attempt))
            if attempt > late:
                body |= _otherwise(sampling, attempt)
            try:
                text = _content(await _json(session, "POST", f"{self.url.rstrip('/')}/chat/completions", body), spent)
            except PermissionError as error:
                raise NoAnswer(f"{self.model} at {self.url} refuses: {error}") from None
            except TimeoutError:
                why, late = f"no answer within {self.deadline_s:g} s", late + 1
                continue
            except (OSError, ValueError) as error:
                why = str(error)
                continue
            if (found := read(text)) is not None:
                return found
            why = f"a reply that cannot be read: {text[-100:]!r}"
        kind = NoReply if late == self.retries + 1 else NoAnswer
        raise kind(f"no answer of {self.model} at {self.url} in {self.retries + 1} tries; last: {why}")

    async def ask_text(
        self,
        session: ClientSession,
        messages: Sequence[Mapping[str, Any]],
        usable: Callable[[str], bool],
        spent: Callable[[int], None],
        **sampling: float,
    ) -> str:
        """Return the first usable reply, else the last that was a text: whoever asks for it counts it as malformed.

        Raises NoAnswer if there was none.
        """
        texts: list[str] = []

        def read(text: str) -> str | None:
            texts.append(text)
            return text if usable(text) else None

        try:
            return await self.ask(session, messages, read, spent, **sampling)
        except NoAnswer:
            if texts:
                return texts[-1]
            raise

    def session(self, at_once: int = 0) -> ClientSession:
        """Open a connection for at most so many requests at once (0: any number)."""
        from aiohttp import ClientSession, ClientTimeout, TCPConnector

        key = os.environ.get(self.key, "") if self.key else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = ClientTimeout(total=self.deadline_s)
        return ClientSession(headers=headers, timeout=timeout, connector=TCPConnector(limit=at_once))

    async def _models(self) -> list[str]:
        async with self.session() as session:
            found = await _json(session, "GET", f"{self.url.rstrip('/')}/models", None)
        return [str(model["id"]) for model in found["data"]]


async def _json(session: ClientSession, method: str, url: str, body: dict[str, Any] | None) -> Any:
    """Return what the endpoint says.

    Raises PermissionError for an answer that stays the same however often one asks (4xx, but too many requests),
    ValueError or OSError for one that may not, TimeoutError past the deadline.
    """
    from aiohttp import ClientError

    try:
        async with session.request(method, url, json=body) as reply:
            text = b""
            while block := await reply.content.read(1 << 16):
                text += block
                if len(text) > MAX_REPLY:
                    raise ValueError(f"a reply of more than {MAX_REPLY} bytes")
            if 400 <= reply.status < 500 and reply.status not in (408, 425, 429):
                raise PermissionError(f"HTTP {reply.status}: {text[:200].decode(errors='replace')}")
            if reply.status != 200:
                raise ValueError(f"HTTP {reply.status}")
    except ClientError as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"no JSON: {text[:60].decode(errors='replace')!r}") from None


def _otherwise(sampling: Mapping[str, float], attempt: int) -> dict[str, float]:
    """What a further try samples by: another seed, if there is one, and no greedy choice."""
    changed = {"temperature": max(WARMER, sampling.get("temperature", WARMER))}
    return changed | ({"seed": (sampling["seed"] + attempt * 1_000_003) % (1 << 31)} if "seed" in sampling else {})


def _content(reply: Any, spent: Callable[[int], None]) -> str:
    """The text of a chat completion; its tokens are told. Raises ValueError for any other form, or one cut off."""
    try:
        usage = reply.get("usage") or {}
        spent(int(usage.get("total_tokens") or 0))
        choice = reply["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        raise ValueError(f"no chat completion: {str(reply)[:60]!r}") from None
    if choice.get("finish_reason") == "length":
        raise ValueError("a reply that was cut off")
    if not isinstance(content, str):
        raise ValueError(f"no text: {content!r}"[:80])
    return content
