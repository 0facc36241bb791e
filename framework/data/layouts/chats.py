"""Conversations in the layouts of public data sets, recognised by the columns of the first row.

messages            messages (OpenAI's): roles, contents, reasoning_content, tool_calls, weight; tools beside them
ShareGPT            conversations (from, value); system, tools
Alpaca              instruction, input (Dolly: context), output; system, history
prompt, completion  prompt (text or messages) and completion or response
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from framework.data.chat_shards import Chat
from framework.data.layouts.columns import Columns, Field, named, renamed, short, text_of
from framework.data.layouts.messages import Message, conversation_in, read_messages
from framework.data.readers import Row
from framework.data.rows import file_rows
from framework.data.sources import Source, find_source
from framework.errors import UserError

logger = logging.getLogger("framework.data")

_MESSAGES = Field("messages", ("conversations", "conversation", "dialog", "dialogue"))
_COMPLETION = Field("completion", ("response", "answer", "output", "chosen"))
_PROMPT = Field("prompt", ("question", "query", "input"))
_INSTRUCTION = Field("instruction")
_INPUT = Field("input", ("context",))  # Alpaca's, Dolly's
_OUTPUT = Field("output", ("response", "completion"))
_REST = tuple(map(Field, ("system", "tools", "history", "id")))
OURS = (_MESSAGES, _PROMPT, _COMPLETION, _INSTRUCTION, _INPUT, _OUTPUT, *_REST)


@dataclass(frozen=True)
class Layout:
    """A layout's name, and how a row of it becomes messages."""

    name: str
    needs: tuple[Field, ...]
    messages: Callable[[Mapping[str, Any], str], tuple[Message, ...]]

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Whether a row has what is needed."""
        return all(field.find(fields) is not None for field in self.needs)


def load_chats(
    name: str, columns: Columns | None = None, key: str = "data.train", split: str = "train"
) -> Iterator[Chat]:
    """Yield conversations of a file, glob, folder or hub data set, whatever its layout; the log says which it is.

    Raises UserError, with file and line, for a row without what its layout needs, an unknown role, or no answer last.
    """
    yield from chats_of(find_source(name, key, split), columns or {})


def chats_of(source: Source, columns: Columns) -> Iterator[Chat]:
    """As `load_chats`, of a source that was found."""
    column_key = f"{source.key.rpartition('.')[0] or 'data'}.columns"
    for file in source.files:
        layout: Layout | None = None
        for found in file_rows(file):
            row = renamed(found, columns, OURS, column_key)
            if layout is None:
                layout = _recognised(row, column_key)
                logger.info("%s: %s read as %s", source.key, file, layout.name)
            yield _chat(row, layout)


def _recognised(row: Row, key: str) -> Layout:
    for layout in LAYOUTS:
        if layout.fits(row.fields):
            return layout
    allowed = "conversations need messages, conversations, instruction and output, or prompt and completion; "
    raise UserError(row.where, f"columns {named(row.fields)}", allowed + f"or name them, {key}={{messages: COLUMN}}")


def _chat(row: Row, layout: Layout) -> Chat:
    fields = row.fields
    lacks = [field.name for field in layout.needs if field.find(fields) is None]
    if lacks:
        raise UserError(row.where, f"columns {named(fields)}", f"no {lacks[0]}, which the rows before it have")
    messages = with_system(layout.messages(fields, row.where), fields.get("system"), row.where)
    last = messages[-1]
    answered = last["role"] == "assistant" and (last["content"].strip() or last.get("tool_calls"))
    if not answered:
        found = "an empty answer" if last["role"] == "assistant" else last["role"]
        raise UserError(f"{row.where}: messages", found, "must end with an assistant's answer")
    if all(message.get("weight", 1) == 0 for message in messages if message["role"] == "assistant"):
        raise UserError(f"{row.where}: messages", "weight 0 everywhere", "must leave an answer to learn")
    tools = _tools(fields.get("tools"), row.where)
    if not tools:  # OpenAI's, before tools
        old = _tools(fields.get("functions"), row.where, "functions")
        tools = tuple({"type": "function", "function": function} for function in old)
    return Chat(str(fields.get("id") or row.where), messages, tools, row.where)


def with_system(messages: tuple[Message, ...], system: Any, where: str) -> tuple[Message, ...]:
    """Put a row's own system text first; raises UserError if the messages have another one."""
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    text = text_of(system, f"{where}: system")
    if messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"] != text:
            raise UserError(f"{where}: system", short(text), "differs from the system message of its messages")
        return messages
    return ({"role": "system", "content": text}, *messages)


def with_input(fields: Mapping[str, Any], column: str, where: str) -> str:
    """Return a question, and if it stands in `instruction` what it is about, which Alpaca and Dolly have beside it."""
    question, more = text_of(fields[column], f"{where}: {column}"), _INPUT.find(fields)
    if column.lower() != _INSTRUCTION.name or more is None or fields[more] in ("", []):
        return question
    return question + "\n" + text_of(fields[more], f"{where}: {more}")


def _tools(value: Any, where: str, name: str = "tools") -> tuple[Mapping[str, Any], ...]:
    if value in (None, "", [], ()):
        return ()
    tools = value
    if isinstance(value, str):
        try:
            tools = json.loads(value)
        except ValueError:
            tools = None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{where}: {name}", short(value), f"must be a list of {name} (or the JSON text of one)")
    return tuple(tools)


def _from_messages(fields: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    column = _MESSAGES.find(fields)
    assert column is not None
    return read_messages(fields[column], f"{where}: {column}")


def _from_alpaca(fields: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    instruction, output = _INSTRUCTION.find(fields), _OUTPUT.find(fields)
    assert instruction is not None
    assert output is not None
    question = with_input(fields, instruction, where)
    turns = []
    for place, turn in enumerate(fields.get("history") or ()):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise UserError(f"{where}: history[{place}]", short(turn), "must be a question and its answer")
        turns += [*_pair(turn[0], turn[1], f"{where}: history[{place}]")]
    return (*turns, *_pair(question, fields[output], f"{where}: {output}"))


def _from_prompt(fields: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    asked, answered = _PROMPT.find(fields), _COMPLETION.find(fields)
    assert asked is not None
    assert answered is not None
    prompt, completion = conversation_in(fields[asked]), conversation_in(fields[answered])
    before: tuple[Message, ...] = (
        ({"role": "user", "content": text_of(prompt, f"{where}: {asked}")},)
        if isinstance(prompt, str)
        else read_messages(prompt, f"{where}: {asked}")
    )
    if isinstance(completion, list | tuple):
        return (*before, *read_messages(completion, f"{where}: {answered}"))
    return (*before, {"role": "assistant", "content": text_of(completion, f"{where}: {answered}")})


def _pair(question: Any, answer: Any, where: str) -> tuple[Message, Message]:
    return (
        {"role": "user", "content": text_of(question, where)},
        {"role": "assistant", "content": text_of(answer, where)},
    )


LAYOUTS = (
    Layout("messages", (_MESSAGES,), _from_messages),
    Layout("Alpaca", (_INSTRUCTION, _OUTPUT), _from_alpaca),
    Layout("prompt and completion", (_PROMPT, _COMPLETION), _from_prompt),
)
