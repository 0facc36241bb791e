"""One conversation as the row that fine-tuning learns from: exactly what sampling will be given, then the answer.

A row is the tokens of the generation prompt, as the sampler gets them, then the answer's and those of its turn's end:
no token spans prompt and answer, and the answer goes on where the prompt stops (behind R1's "<think>\\n"). Earlier
answers are learned too where the template shows them whole, as they would have been sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from framework.data.chat_shards import Chat, EncodedChat
from framework.data.chat_template import ChatTemplate, Message
from framework.data.layouts.messages import REASONING
from framework.errors import UserError

_SENTINEL = "\ue0a0answer\ue0a1"  # stands for an answer, to see what the template puts behind it
_TAGS = re.compile(r"</?think>")


@dataclass(frozen=True)
class _Answer:
    """Where an answer stands in the row's text: behind its generation prompt, up to the end of its turn."""

    start: int
    end: int
    prompt_ids: tuple[int, ...]
    learned: bool


def encode_chat(template: ChatTemplate, chat: Chat) -> EncodedChat:
    """Encode a conversation; an answer of weight 0, and one that the template changes afterwards, is context only.

    Raises UserError, naming file and line, if the last answer does not go on where the generation prompt stops, if the
    template refuses or drops a message, or if nothing is left to learn.
    """
    where = chat.where or f"chat {chat.id}"
    messages = template.with_system(chat.messages)
    last = len(messages) - 1
    prompt = template.prompt(messages[:last], chat.tools, where)
    text = prompt.text + _last_answer(template, messages, chat.tools, prompt.text, prompt.opened, where)
    final = _Answer(len(prompt.text), len(text), prompt.token_ids, messages[last].get("weight", 1) == 1)
    earlier = [
        answer
        for place in range(1, last)
        if messages[place]["role"] == "assistant"
        and (answer := _earlier_answer(template, messages, place, chat.tools, text, where)) is not None
    ]
    encoded = _row(template, text, [*earlier, final]) or _row(template, text, [final])
    assert encoded is not None  # it begins with the prompt's own tokens
    if not encoded.learned.any():
        raise UserError(where, "no answer to learn", "those of weight 1 are changed by the template in later turns")
    return encoded


def _last_answer(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any], prompt: str, opened: str, where: str
) -> str:
    """The masked text behind the generation prompt: as the template shows it, or, if that erases some, as it stands."""
    name = f"{where}[{len(messages) - 1}]"
    shown = template.render(messages, tools, where, add_generation_prompt=False, keep_last_reasoning=True)
    given = template.given(messages[-1])
    if shown.startswith(prompt) and _whole(given, opened + shown[len(prompt) :]):
        return shown[len(prompt) :]
    if not given.keys().isdisjoint({"tool_calls", *REASONING}):
        found = template.control.unmask(prompt[-40:])
        raise UserError(name, found, "is how the generation prompt ends, and the chat template does not go on from it")
    content: str = given["content"]
    if not content.startswith(opened):
        found = template.control.unmask(content[:40])
        raise UserError(name, found, f"must begin with {opened!r}: the generation prompt ends in it")
    stand_in = [*messages[:-1], {"role": "assistant", "content": _SENTINEL}]
    around = template.render(stand_in, tools, where, add_generation_prompt=False)
    return content[len(opened) :] + around.rpartition(_SENTINEL)[2]


def _earlier_answer(
    template: ChatTemplate, messages: Sequence[Message], place: int, tools: Sequence[Any], text: str, where: str
) -> _Answer | None:
    """An answer that stands in the row as it would have been sampled; None for one that the template changed."""
    if all(message["role"] != "user" for message in messages[:place]):
        return None  # templates refuse to ask without a question
    prompt = template.prompt(messages[:place], tools, where)
    shown = template.render(messages[: place + 1], tools, where, add_generation_prompt=False)
    if not (shown.startswith(prompt.text) and text.startswith(shown)):
        return None
    if not _whole(template.given(messages[place]), prompt.opened + shown[len(prompt.text) :]):
        return None
    return _Answer(len(prompt.text), len(shown), prompt.token_ids, messages[place].get("weight", 1) == 1)


def _whole(message: Message, text: str) -> bool:
    """Whether the text holds all that the message says."""
    said = [*_TAGS.split(message["content"]), *(message.get(name, "") for name in REASONING)]
    return all(piece.strip() in text for piece in said)


def _row(template: ChatTemplate, text: str, answers: Sequence[_Answer]) -> EncodedChat | None:
    """Encode prompt, answer, what follows it, and so on; None if a later prompt's own tokens are others."""
    ids: list[int] = []
    learned: list[int] = []
    done, end_token = 0, template.control.tokenizer.eos_token_id
    for answer in answers:
        before = template.control.encode(text[done : answer.start])
        if not ids:
            before = list(answer.prompt_ids)
        ids += before
        learned += [0] * len(before)
        if tuple(ids) != answer.prompt_ids:
            return None
        said = template.control.encode(text[answer.start : answer.end])
        # What a template puts behind the end token (a line break) is never sampled.
        size = said.index(end_token) + 1 if end_token in said else len(said)
        learned += [int(answer.learned)] * size + [0] * (len(said) - size)
        ids += said
        done = answer.end
    return EncodedChat(np.asarray(ids, np.int32), np.asarray(learned, np.int32))
