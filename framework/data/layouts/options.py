"""Multiple choice in the layouts of public data sets, turned into rows of ours: a text with options, a letter.

    GPQA             Question, Correct Answer, Incorrect Answer 1 to 3 (put into an order by hash of the question)
    MMLU, ARC        question, choices (a list, or {text, label}), answer (a letter, an index from 0, or a text)
    MMLU-Pro, MedQA  question, options (a list, or letter -> text), answer or answer_idx
    C-Eval, CMMLU    question, A, B, C, D, answer

The options stand in the row's `options`, letter -> text, where the reward for multiple choice looks for them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from framework.data.layouts.columns import Field, short, text_of
from framework.data.readers import Row
from framework.errors import UserError

TASK = "options"  # as `framework.rewards.options` judges it
_QUESTION = Field("question", ("prompt", "problem", "query", "text"))
_CHOICES = Field("options", ("choices",))
ANSWERS = Field("answer_idx", ("answer_index", "answerKey", "answer", "label", "target", "correct"))
_RIGHT = Field("Correct Answer")
_WRONG = tuple(Field(f"Incorrect Answer {number}") for number in (1, 2, 3))
_MARK = re.compile(r"\(?([A-Z])[).:]\s*")


def options_row(row: Row) -> Row | None:
    """Return the row in our words if it is multiple choice, else None.

    Raises UserError naming file and line for options or an answer that cannot be made sense of.
    """
    fields = row.fields
    question = _QUESTION.find(fields)
    if question is None or not isinstance(fields[question], str):
        return None
    if _RIGHT.find(fields) is not None:
        used, options, answer = _gpqa(row, fields[question])
    elif (found := _listed(row)) is not None:
        used, options, answer = found
    else:
        return None
    rest = {key: value for key, value in fields.items() if key not in {question, *used}}
    text = fields[question].rstrip() + "\n\n" + "\n".join(f"{letter}) {said}" for letter, said in options.items())
    return Row(row.where, {"task": TASK, **rest, "text": text, "answer": answer, "options": options})


def _gpqa(row: Row, question: str) -> tuple[set[str], dict[str, str], str]:
    columns = [field.find(row.fields) for field in (_RIGHT, *_WRONG)]
    missing = next((f.name for f, column in zip((_RIGHT, *_WRONG), columns, strict=True) if column is None), None)
    if missing is not None:
        raise UserError(
            row.where, f"no column {missing!r}", "multiple choice needs the right answer and three wrong ones"
        )
    texts = [text_of(row.fields[str(column)], f"{row.where}: {column}").strip() for column in columns]
    order = list(range(len(texts)))
    random.Random(hashlib.sha256(question.encode()).digest()).shuffle(order)
    options = dict(zip(string.ascii_uppercase, (texts[place] for place in order), strict=False))
    return {str(column) for column in columns}, options, string.ascii_uppercase[order.index(0)]


def _listed(row: Row) -> tuple[set[str], dict[str, str], str] | None:
    fields = row.fields
    column, labels = _CHOICES.find(fields), dict[str, str]()
    choices = None if column is None else _unwritten(fields[column], f"{row.where}: {column}")
    if column is not None and choices:
        used, options = {column}, _texts(choices, f"{row.where}: {column}")
        labels = _labels(choices, options, f"{row.where}: {column}")
    elif all(isinstance(fields.get(letter), str | int | float) for letter in "ABCD"):
        letters = [letter for letter in "ABCDEFGHIJ" if fields.get(letter) is not None]
        used, options = set(letters), {letter: text_of(fields[letter], f"{row.where}: {letter}") for letter in letters}
    else:
        return None
    named = ANSWERS.find(fields)
    if named is None:
        raise UserError(row.where, "options without an answer", "multiple choice needs a column for the answer")
    also = {key for key in fields if str(key).lower() in ("answer", "answer_idx", "answer_index")}
    answer = fields[named]
    if isinstance(answer, str | int) and not isinstance(answer, bool):
        answer = labels.get(str(answer).strip(), answer)
    return {*used, named, *also}, options, _letter(answer, options, f"{row.where}: {named}")


def _labels(found: Any, options: Mapping[str, str], where: str) -> dict[str, str]:
    """What ARC calls its options, some "1" to "4", and the letters that they have here."""
    given = found.get("label") if isinstance(found, Mapping) and isinstance(found.get("text"), list) else None
    if given is None:
        return {}
    if not isinstance(given, list) or len(given) != len(options):
        raise UserError(f"{where}.label", short(given), f"must name each of the {len(options)} options")
    return dict(zip(map(str, given), options, strict=True))


def _unwritten(found: Any, where: str) -> Any:
    """The list or mapping of options, which a table of texts (.csv) keeps as JSON or as Python writes it; else None."""
    if isinstance(found, str) and found.strip().startswith(("[", "{")):
        for read in (json.loads, ast.literal_eval):
            try:
                options = read(found.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            # two strings with nothing between them are one to Python: ['a' 'b'], as numpy prints, is not to be read
            if isinstance(options, Mapping) or (isinstance(options, list) and len(options) > 1):
                return options
        raise UserError(where, short(found), "must be a list of options, or letter -> text, written as JSON")
    return found if isinstance(found, list | Mapping) else None


def _texts(found: Any, where: str) -> dict[str, str]:
    """Letter -> text, from a list, a mapping by letter, or ARC's {text: [...], label: [...]}."""
    if isinstance(found, Mapping) and isinstance(found.get("text"), list):
        found = found["text"]
    if isinstance(found, Mapping):
        given = {str(key).strip().upper(): value for key, value in found.items() if value is not None}
        if set(given) != set(string.ascii_uppercase[: len(given)]):
            raise UserError(where, ", ".join(given)[:60], "must be named A, B, C, …")
        found = [given[letter] for letter in sorted(given)]
    texts = [text_of(item, f"{where}[{place}]").strip() for place, item in enumerate(found)]
    if not 2 <= len(texts) <= len(string.ascii_uppercase):
        raise UserError(where, f"{len(texts)} options", "must be at least 2")
    marks = [_MARK.match(text) for text in texts]
    if all(mark and mark[1] == string.ascii_uppercase[place] for place, mark in enumerate(marks)):  # AQuA: "A)21"
        texts = [text[mark.end() :] for text, mark in zip(texts, marks, strict=True) if mark]
    return dict(zip(string.ascii_uppercase, texts, strict=False))


def _letter(found: Any, options: Mapping[str, str], where: str) -> str:
    """The letter of the answer, given as one, as an index from 0, or as the option's text."""
    letters: Sequence[str] = list(options)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < len(letters):
        return letters[found]
    if isinstance(found, str):
        plain = found.strip()
        letter = plain.strip("().").upper()
        if letter in options:
            return letter
        texts = [key for key, text in options.items() if text.casefold() == plain.casefold()]
        if len(texts) == 1:
            return texts[0]
        if plain.isdigit() and int(plain) < len(letters):
            return letters[int(plain)]
    allowed = f"must be one of the options {', '.join(letters)}: its letter, its index from 0 or its text"
    raise UserError(where, short(found), allowed)
