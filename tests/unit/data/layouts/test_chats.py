"""Conversations of every public layout, and preferences; nothing of a row is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework.data.layouts.chats import load_chats
from framework.data.layouts.preferences import Preference, load_preferences
from framework.errors import UserError


def jsonl(directory: Path, *rows: object) -> str:
    path = directory / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED, ANSWERED = turn("user", "2+2?"), turn("assistant", "4")
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ({"messages": [ASKED, ANSWERED]}, [ASKED, ANSWERED]),
    "messages, reasoning": (
        {"messages": [ASKED, turn("assistant", "4", thinking="two twice")]},
        [ASKED, turn("assistant", "4", reasoning_content="two twice")],
    ),
    "messages, parts": (
        {"messages": [turn("user", [{"type": "text", "text": "2"}, {"type": "text", "text": "+2?"}]), ANSWERED]},  # type: ignore[arg-type]
        [ASKED, ANSWERED],
    ),
    "messages, tools": (
        {"messages": [turn("developer", "D"), ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      turn("tool", "4", tool_call_id="1"), turn("assistant", "It is 4.", weight=1)]},
        [turn("developer", "D"), ASKED, turn("assistant", "", tool_calls=[CALL]),
         turn("tool", "4", tool_call_id="1"), turn("assistant", "It is 4.", weight=1)],
    ),
    "ShareGPT": (
        {"system": "S", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        [turn("system", "S"), ASKED, ANSWERED],
    ),
    "ShareGPT, call": (
        {"conversations": [{"from": "human", "value": "2+2?"},
                           {"from": "function_call", "value": json.dumps(CALL["function"])},
                           {"from": "observation", "value": "4"}, {"from": "gpt", "value": "4"}]},
        [ASKED, turn("assistant", "", tool_calls=[CALL]), turn("tool", "4"), ANSWERED],
    ),
    "Alpaca": (
        {"instruction": "Add.", "input": "2+2?", "output": 4, "history": [["2+2?", "4"]], "system": ""},
        [ASKED, ANSWERED, turn("user", "Add.\n2+2?"), ANSWERED],
    ),
    "prompt and completion": ({"prompt": "2+2?", "completion": "4"}, [ASKED, ANSWERED]),
    "prompt and completion, messages": ({"prompt": [turn("system", "S"), ASKED], "completion": [ANSWERED]},
                                        [turn("system", "S"), ASKED, ANSWERED]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, tmp_path: Path) -> None:
    row, expected = LAYOUTS[layout]
    file = jsonl(tmp_path, {**row, "tools": '[{"name": "add"}]'})
    (chat,) = load_chats(file)
    assert list(chat.messages) == expected
    assert chat.tools == ({"name": "add"},)
    assert chat.id == chat.where == f"{file}:1"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chat": [ASKED]}, "columns chat'; conversations need messages"),
        ({"messages": []}, "must be a list of {role, content}"),
        ({"messages": ["hi"]}, r"messages\[0\]: got 'hi'; must have a role and a content"),
        ({"messages": [turn("asistant", "4")]}, r"messages\[0\]: role: got 'asistant'.*did you mean 'assistant'"),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": "x"}]), ANSWERED]}, "images"),  # type: ignore[arg-type]
        ({"messages": [{"from": "human", "text": "2+2?"}, ANSWERED]}, r"messages\[0\]: content: got None"),
        ({"messages": [ASKED]}, "must end with an assistant's answer"),
        ({"messages": [ASKED, turn("assistant", " ")]}, "must end with an assistant's answer"),
        ({"messages": [ASKED, turn("assistant", "4", weight=0.5)]}, "weight: got 0.5; must be 0"),
        ({"messages": [ASKED, turn("assistant", "4", weight=0)]}, "must leave an answer to learn"),
        ({"messages": [turn("user", "q", weight=0), ANSWERED]}, "only an assistant's message has one"),
        ({"messages": [turn("user", "q", thinking="t"), ANSWERED]}, "in an assistant's message"),
        ({"system": "A", "messages": [turn("system", "B"), ASKED, ANSWERED]}, "differs from the system message"),
        ({"messages": [ASKED, ANSWERED], "tools": "none"}, "tools: got 'none'"),
        ({"conversations": [{"from": "function_call", "value": "add"}]}, "function call"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"messages": [ASKED, ANSWERED], "conversations": [ASKED, ANSWERED]})
    bad = jsonl(tmp_path, row)
    with pytest.raises(UserError, match=f"{bad}:1.*{says}"):
        list(load_chats(file))


def test_older_and_foreign_spellings_lose_nothing(tmp_path: Path) -> None:
    call = {"name": "add", "arguments": "{}"}
    old = [ASKED, {"role": "assistant", "content": None, "function_call": call}, turn("function", "4"), ANSWERED]
    (chat,) = load_chats(jsonl(tmp_path, {"messages": old, "functions": [{"name": "add"}]}))
    assert chat.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert chat.tools == ({"type": "function", "function": {"name": "add"}},)
    flagged = [ASKED, turn("assistant", "5", train=False), ASKED, turn("ai", "4", train=True)]
    (chat,) = load_chats(jsonl(tmp_path, {"messages": flagged}))
    assert [message.get("weight") for message in chat.messages] == [None, 0, None, 1]
    (chat,) = load_chats(jsonl(tmp_path, {"instruction": "Say", "context": "it", "response": "so"}))
    assert chat.messages[0]["content"] == "Say\nit"
    whole = {"prompt": json.dumps([ASKED]), "completion": json.dumps([ANSWERED])}
    assert [list(chat.messages) for chat in load_chats(jsonl(tmp_path, whole))] == [[ASKED, ANSWERED]]


PREFERENCES: dict[str, dict[str, Any]] = {
    "ShareGPT": {"conversations": [{"from": "human", "value": "2+2?"}],
                 "chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "5"}},
    "JSON texts": {"prompt": json.dumps([ASKED]), "chosen": json.dumps([ANSWERED]), "rejected": "5"},
    "hh's prompt": {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": "4", "rejected": "5"},
    "hh, other line ends": {"chosen": "Human: 2+2?\r\n\r\nAssistant: 4",
                            "rejected": "Human: 2+2?\r\n\r\nAssistant: 5"},
    "texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "messages": {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, turn("assistant", "5")]},
    "prompt and messages": {"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [turn("assistant", "5")]},
    "prompt beside whole": {"prompt": "2+2?", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, turn("assistant", "5")]},
    "hh": {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
}  # fmt: skip


@pytest.mark.parametrize("layout", PREFERENCES)
def test_preferences_of_every_layout(layout: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"id": "p", **PREFERENCES[layout]})
    assert list(load_preferences(file)) == [Preference("p", (ASKED,), ANSWERED, turn("assistant", "5"))]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "4"}, "need chosen and rejected"),
        ({"chosen": "4", "rejected": "5"}, "must answer the same question"),
        ({"prompt": "q", "chosen": "4", "rejected": "4"}, "must differ"),
        ({"chosen": [ASKED, ANSWERED], "rejected": [turn("user", "x"), ANSWERED]}, "must answer the same question"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d"},
         "must end with a user's question and an assistant's answer"),
    ],
)  # fmt: skip
def test_a_bad_preference_is_named(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path, row)
    with pytest.raises(UserError, match=f"{file}:1.*{says}"):
        list(load_preferences(file))
