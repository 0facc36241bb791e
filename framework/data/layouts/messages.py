"""Messages of a conversation: roles and contents in the public spellings, checked and brought to one form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from framework.data.json_table import is_conversation
from framework.data.layouts.columns import short
from framework.errors import UserError, did_you_mean

Message = Mapping[str, Any]
# One of ours for each spelling that is in use (OpenAI's, ShareGPT's and its descendants').
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",  # a call, as JSON, in the place of an answer
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # spellings of one field
_KEPT = ("tool_calls", "tool_call_id", "name", "weight")
_LEARNED = ("train", "loss")  # true or false, where others than OpenAI say which answers are learned


def conversation_in(value: Any) -> Any:
    """Return the list of messages that a text is the JSON of, as tables of text hold them; any other value as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if is_conversation(found) else value


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """Return messages as {"role", "content"} and what of `reasoning_content`, `tool_calls`, `weight` there is.

    Takes OpenAI's spelling and ShareGPT's (`from`, `value`), contents in parts, and a list as JSON text. Raises
    UserError with `where` and the message's number for an unknown role, field or kind of content.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError(where, value[:60], "must be a list of {role, content}") from None
    if not isinstance(value, list | tuple) or not value:
        raise UserError(where, short(value), "must be a list of {role, content}")
    return tuple(_message(message, f"{where}[{place}]") for place, message in enumerate(value))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(where, short(message), "must have a role and a content")
    fields = {key: value for key, value in message.items() if value is not None}
    spelt = fields.get("role", fields.get("from"))
    role = ROLES.get(str(spelt).lower()) if isinstance(spelt, str) else None
    if role is None:
        known = f"{did_you_mean(str(spelt), ROLES)}roles are {', '.join(dict.fromkeys(ROLES.values()))}"
        raise UserError(f"{where}: role", spelt, f"must have a role and a content; {known}")
    called = isinstance(fields.get("function_call"), Mapping)  # what OpenAI had before tool_calls
    if called:
        fields["tool_calls"] = _checked_calls(fields["function_call"], where)
    spoken = any(fields.get(name) for name in ("tool_calls", *REASONING))
    spoken = spoken or (role in ("assistant", "tool") and "content" in message)
    content = fields.get("content", fields.get("value", "" if spoken else None))
    found: dict[str, Any] = {"role": role, "content": _content(content, where)}
    if str(spelt).lower() == "function_call":
        found = {"role": role, "content": "", "tool_calls": _calls(found["content"], where)}
    flag = next((fields[name] for name in _LEARNED if isinstance(fields.get(name), bool)), None)
    if flag is not None and role == "assistant":
        fields.setdefault("weight", int(flag))
    reasoning = [fields[name] for name in REASONING if fields.get(name)]
    if reasoning:
        if role != "assistant" or not all(isinstance(text, str) and text == reasoning[0] for text in reasoning):
            raise UserError(where, short(reasoning), "must have one reasoning, a text, in an assistant's message")
        found["reasoning_content"] = reasoning[0]
    found |= {name: fields[name] for name in _KEPT if fields.get(name) not in (None, [], "")}
    _check(found, where)
    return found


def _content(content: Any, where: str) -> str:
    """A text, or the texts of parts one after another."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
            if not isinstance(text, str):
                raise UserError(f"{where}: content", short(part), "must be text: images, audio and files are not read")
            texts.append(text)
        return "".join(texts)
    raise UserError(f"{where}: content", short(content), "must have a role and a content, both strings")


def _calls(content: str, where: str) -> list[dict[str, Any]]:
    """ShareGPT's function_call: {"name", "arguments"} as JSON, or a list of them."""
    try:
        found = json.loads(content)
    except ValueError:
        found = content
    return _checked_calls(found, where)


def _checked_calls(found: Any, where: str) -> list[dict[str, Any]]:
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls) or not calls:
        raise UserError(where, short(found), "must be a function call: JSON with name and arguments")
    return [{"type": "function", "function": call} for call in calls]


def _check(message: Mapping[str, Any], where: str) -> None:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise UserError(f"{where}: weight", weight, "must be 0 (not learned) or 1")
    if "weight" in message and message["role"] != "assistant":
        raise UserError(f"{where}: weight", weight, "only an assistant's message has one: nothing else is learned")
    calls = message.get("tool_calls")
    if calls is not None and (message["role"] != "assistant" or not isinstance(calls, list)):
        raise UserError(f"{where}: tool_calls", short(calls), "must be a list, in an assistant's message")
