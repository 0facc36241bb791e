"""Preferences in the layouts of public data sets, recognised by the columns of the first row.

chosen, rejected    texts after a prompt (text or messages); or whole conversations that begin alike
hh                  chosen and rejected as "\\n\\nHuman: ...\\n\\nAssistant: ..." (Anthropic's hh-rlhf)
ShareGPT            chosen and rejected after conversations, a list of turns (LLaMA-Factory's)
rankings            several answers, as `layouts.rankings` has them: all pairs of them that are no ties
labels              one answer a row (answer, response) with a label: a number, true or false

Beside chosen and rejected a margin may stand: by how much the first is better.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from framework.data.layouts import rankings
from framework.data.layouts.chats import with_input, with_system
from framework.data.layouts.columns import Columns, Field, named, renamed, text_of
from framework.data.layouts.messages import Message, conversation_in, read_messages
from framework.data.readers import Row
from framework.data.sources import Source, find_source
from framework.errors import UserError

logger = logging.getLogger("framework.data")

_CHOSEN, _REJECTED = Field("chosen", ("accepted", "preferred")), Field("rejected", ("dispreferred",))
_PROMPT = Field("prompt", ("question", "instruction", "query", "input", "messages", "conversations", "conversation"))
_ANSWER = Field("answer", ("response", "completion", "output"))
_LABEL = Field("label", ("safe", "is_safe", "score", "rating"))
_REST = tuple(map(Field, ("margin", "ranks", "scores", "system", "id")))
OURS = (_PROMPT, _CHOSEN, _REJECTED, _ANSWER, _LABEL, rankings.ANSWERS, *_REST)
_HH = re.compile(r"(?:\A|\r?\n\r?\n)(Human|Assistant):")
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True)
class Preference:
    """Two answers to one conversation, the first of them preferred."""

    id: str
    messages: tuple[Message, ...]  # ends with the user's question
    chosen: Message  # an assistant's
    rejected: Message
    margin: float = 0.0

    @property
    def row(self) -> dict[str, Any]:
        """As a row of a PreferenceSet, which is read as any other."""
        found = {"id": self.id, "prompt": self.messages, "chosen": self.chosen, "rejected": self.rejected}
        return {**found, "margin": self.margin}


@dataclass(frozen=True)
class Labelled:
    """An answer to a conversation, and its label."""

    id: str
    messages: tuple[Message, ...]
    answer: Message
    label: float

    @property
    def row(self) -> dict[str, Any]:
        """As a row of a PreferenceSet."""
        return {"id": self.id, "prompt": self.messages, "answer": self.answer, "label": self.label}


def load_preferences(
    name: str, columns: Columns | None = None, key: str = "data.train", split: str = "train"
) -> Iterator[Preference]:
    """Yield the preferences of a file, glob, folder or hub data set, whatever its layout; the log says which it is.

    Raises UserError, with file and line, for a row without two answers to one question, or two that are equal.
    """
    yield from preferences_of(find_source(name, key, split), columns or {})


def preferences_of(source: Source, columns: Columns) -> Iterator[Preference]:
    """As `load_preferences`, of a source that was found."""
    column_key = f"{source.key.rpartition('.')[0] or 'data'}.columns"
    said, ties, rows = False, 0, 0
    for found in source.rows():
        row = renamed(found, columns, OURS, column_key)
        chosen, rejected, prompt = (field.find(row.fields) for field in (_CHOSEN, _REJECTED, _PROMPT))
        ranking = rankings.ANSWERS.find(row.fields)
        if ranking is not None and chosen is None:
            ranked = rankings.read_ranking(row.fields, ranking, row.where)
            ties, rows = ties + ranked.ties, rows + 1
            yield from _ranked(row, ranked, prompt)
            continue
        if chosen is None or rejected is None:
            allowed = "preferences need chosen and rejected, or ranked answers; "
            allowed += f"or name them, {column_key}={{chosen: COLUMN, …}}"
            raise UserError(row.where, f"columns {named(row.fields)}", allowed)
        if not said:
            hh = _is_hh(row.fields[chosen])
            layout = "hh" if hh else f"{'prompt, ' if prompt else ''}chosen and rejected"
            logger.info("%s: %s read as %s", source.key, source.name, layout)
            said = True
        yield _preference(row, chosen, rejected, prompt)
    if rows:
        logger.info("%s: %s read as %d rankings; %d pairs in them are ties", source.key, source.name, rows, ties)


def load_labelled(
    name: str, columns: Columns | None = None, key: str = "data.train", split: str = "train"
) -> Iterator[Labelled]:
    """Yield labelled answers of a file, glob, folder or hub data set.

    Raises UserError, with file and line, for a row without a prompt, an answer and a number for a label.
    """
    column_key = f"{key.rpartition('.')[0] or 'data'}.columns"
    for found in find_source(name, key, split).rows():
        row = renamed(found, columns or {}, OURS, column_key)
        prompt, answer, label = (field.find(row.fields) for field in (_PROMPT, _ANSWER, _LABEL))
        if prompt is None or answer is None or label is None:
            allowed = f"labelled answers need prompt, answer and label; or name them, {column_key}={{label: COLUMN, …}}"
            raise UserError(row.where, f"columns {named(row.fields)}", allowed)
        messages, answers = _asked(row, prompt), _side(row.fields[answer], f"{row.where}: {answer}")
        if len(answers) != 1 or answers[0]["role"] != "assistant":
            raise UserError(row.where, answer, "must be one assistant's answer to a question")
        number = _number(row.fields[label], f"{row.where}: {label}")
        yield Labelled(str(row.fields.get("id") or row.where), messages, answers[0], number)


def _number(value: Any, where: str) -> float:
    """A number or a truth value; tables of text hold them as text."""
    if isinstance(value, str):
        value = _TRUTH.get(value.strip().lower(), value)
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise UserError(where, value, "must be a number, true or false")


def _ranked(row: Row, ranked: rankings.Ranked, prompt: str | None) -> Iterator[Preference]:
    """All pairs of a ranking; of the answers of one rank nothing is said."""
    if prompt is None:
        raise UserError(row.where, f"columns {named(row.fields)}", "a ranking needs the prompt that it answers")
    messages = _asked(row, prompt)
    name = str(row.fields.get("id") or row.where)
    for better, worse in ranked.pairs():
        # by how much is not said: ranks have no unit
        yield Preference(f"{name}#{better}>{worse}", messages, ranked.answers[better], ranked.answers[worse])


def _asked(row: Row, prompt: str) -> tuple[Message, ...]:
    """The conversation that is answered, which a user or a tool ends."""
    asked, where = _before(row.fields, prompt, row.where), f"{row.where}: {prompt}"
    if asked[-1]["role"] not in ("user", "tool"):
        raise UserError(where, asked[-1]["role"], "must end with a user's question")
    return with_system(asked, row.fields.get("system"), row.where)


def _preference(row: Row, chosen: str, rejected: str, prompt: str | None) -> Preference:
    fields, where = row.fields, row.where
    sides = [_side(fields[column], f"{where}: {column}") for column in (chosen, rejected)]
    before: tuple[Message, ...] = ()
    if prompt is not None and len(sides[0]) == len(sides[1]) == 1:
        before = _before(fields, prompt, where)
    good, bad = (before + side for side in sides)
    if len(good) < 2 or good[:-1] != bad[:-1]:
        raise UserError(
            where, f"{chosen} and {rejected}", "must answer the same question: a prompt, or what begins alike"
        )
    for side in (good, bad):
        if side[-1]["role"] != "assistant" or side[-2]["role"] not in ("user", "tool"):
            raise UserError(where, side[-1]["role"], "must end with a user's question and an assistant's answer")
    if good[-1] == bad[-1]:
        raise UserError(where, f"{chosen} and {rejected}", "must differ")
    messages = with_system(good[:-1], fields.get("system"), where)
    margin = fields.get("margin")
    size = 0.0 if margin is None else _number(margin, f"{where}: margin")
    if size < 0:
        raise UserError(f"{where}: margin", margin, "must be 0 or more: by how much chosen is better")
    return Preference(str(fields.get("id") or where), messages, good[-1], bad[-1], size)


def _is_hh(value: Any) -> bool:
    return isinstance(value, str) and _HH.match(value) is not None


def _before(fields: Mapping[str, Any], prompt: str, where: str) -> tuple[Message, ...]:
    """What is answered: a text, Alpaca's two, or a conversation, of which hh's ends with "Assistant:"."""
    value = conversation_in(fields[prompt])
    if isinstance(value, str) and not _is_hh(value):
        return ({"role": "user", "content": with_input(fields, prompt, where)},)
    found = _side(value, f"{where}: {prompt}")
    return found[:-1] if len(found) > 1 and found[-1] == {"role": "assistant", "content": ""} else found


def _side(value: Any, where: str) -> tuple[Message, ...]:
    """A whole conversation, or one answer."""
    value = conversation_in(value)
    if _is_hh(value):
        parts = _HH.split(value)[1:]
        pairs: list[tuple[str, str]] = list(zip(parts[::2], parts[1::2], strict=True))
        roles: Mapping[str, str] = {"Human": "user", "Assistant": "assistant"}
        return tuple({"role": roles[name], "content": text.strip()} for name, text in pairs)
    if isinstance(value, list | tuple):
        return read_messages(value, where)
    if isinstance(value, Mapping):  # one message
        return read_messages([value], where)
    return ({"role": "assistant", "content": text_of(value, where)},)
