"""Prompts with reference answers in the layouts of public data sets, recognised by the columns of the first row.

    GSM8K        question, answer (the reference stands behind ####)
    MATH         problem, solution (the reference is its last \\boxed{}) or answer
    AIME         question or problem, answer (of a solution with #### or \\boxed{} what stands there)
    CHAMP        _text, _answer
    verl         prompt: messages, reward_model: {ground_truth} (an object or a list as JSON)
    OpenRLHF     input, prompt, context_messages or messages (text or messages), label
    HumanEval    prompt, canonical_solution, test, entry_point
    own          prompt (or text), answer; optional id, task, system, rewards, token_ids, entry
    GPQA, MMLU and others of multiple choice: see `framework.data.layouts.options`
    MBPP, APPS, CodeContests, LiveCodeBench, Codeforces: see `framework.data.layouts.programs`

Columns that a layout does not use travel with the prompt (`Prompt.columns`), for rewards to read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from framework.data.layouts.columns import Columns, Field, named, renamed, short, text_of
from framework.data.layouts.messages import Message, conversation_in, read_messages
from framework.data.layouts.options import ANSWERS, options_row
from framework.data.layouts.programs import program_row
from framework.data.readers import Row
from framework.data.rows import as_json, file_rows
from framework.data.sources import Source, find_source
from framework.errors import UserError, did_you_mean
from framework.types import Prompt

logger = logging.getLogger("framework.data")

MATH = "math"  # the task of a prompt whose row names none: compared as mathematics
_GSM8K = re.compile(r"####\s*(.+?)\s*\Z", re.DOTALL)
_ENDS_MARKED = re.compile(r"(?:\A|\n)\s*####[^\n]*\S\s*\Z")
_NUMBER = re.compile(r"[-+]?[$€£]?\d{1,3}(,\d{3})+(\.\d+)?")
_MESSAGES = ("context_messages", "messages")
_TEXT = Field("text", ("prompt", "question", "problem", "_text", "input", *_MESSAGES, "instruction", "query"))
_ID = Field("id", ("task_id", "unique_id", "problem_id", "identifier", "record id"))


@dataclass(frozen=True)
class Layout:
    """How the rows of a data set become prompts."""

    name: str
    text: Field
    answer: Field
    reference: Callable[[Any, str], str] = text_of  # from the answer's column
    task: str = MATH
    left_out: tuple[str, ...] = ()  # columns that are no use to a reward, and large

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Whether a row has what is needed."""
        return self.text.find(fields) is not None and _nested(fields, self.answer) is not None


def after_marks(value: Any, where: str) -> str:
    """GSM8K's reference: what stands behind the last ####; the commas of a number are none of it."""
    found = _GSM8K.search(value.rpartition("####")[1] + value.rpartition("####")[2]) if isinstance(value, str) else None
    if found is None:
        raise UserError(where, short(value), "must end in #### and the reference answer")
    answer = found[1]
    return answer.replace(",", "") if _NUMBER.fullmatch(answer) else answer


def of_solution(text: str, where: str) -> str:
    """A mathematical reference as it is, or of a whole solution what its last line of #### or last \\boxed{} holds."""
    if _ENDS_MARKED.search(text):
        return after_marks(text, where)
    return last_boxed(text, where) if re.search(r"\\f?boxed\s*\{", text) else text


def _stored(value: Any, where: str) -> str:
    """verl's: what its own rewards are given, which may be a list or an object."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | int | float):
        value = value[0]
    return json.dumps(as_json(value)) if isinstance(value, list | Mapping) else text_of(value, where)


def last_boxed(value: Any, where: str) -> str:
    """MATH's reference: what the last \\boxed{} (or \\fbox{}) of the solution encloses."""
    text = text_of(value, where)
    starts = [match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]
    if not starts:
        bare = re.findall(r"\\boxed\s+(\w+)", text)  # \boxed 2, as a few of MATH's have it
        if bare:
            return str(bare[-1])
        raise UserError(where, text[-60:], "must hold \\boxed{the reference answer}, or the row a column 'answer'")
    depth = 1
    for place in range(starts[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
        if depth == 0:
            return text[starts[-1] : place].strip()
    raise UserError(where, text[starts[-1] : starts[-1] + 60], "has a \\boxed{ that is not closed")


_ANSWER = Field("answer", ("_answer", "final_answer", "expected_answer", "ground_truth", "label", "target", "solution"))
# The first that fits; one with more particular columns stands before one whose columns are common.
LAYOUTS = (
    Layout("verl", Field("prompt"), Field("reward_model.ground_truth"), _stored),
    Layout("GSM8K", Field("question"), Field("answer"), after_marks),
    Layout("HumanEval", Field("prompt"), Field("canonical_solution"), task="code"),
    Layout("CHAMP", Field("_text"), Field("_answer"), left_out=("conversations", "fws_annotations")),
    Layout("MATH", Field("problem"), Field("answer", ("final_answer",))),
    Layout("question and answer", Field("question"), Field("answer")),  # AIME
    Layout("prompt and answer", _TEXT, Field("answer", _ANSWER.columns[:-1])),
    Layout("MATH", Field("problem", ("question", "text", "prompt")), Field("solution"), last_boxed),
)
# Layouts whose rows are turned into ours first; where no later row fits, the first of the columns is what it lacks.
MADE: Mapping[Layout, Callable[[Row], Row | None]] = MappingProxyType(
    {
        Layout("multiple choice", Field("text", ("options",)), Field("answer")): options_row,
        Layout(
            "contest problems", Field("text", ("tests",)), Field("answer"), lambda answer, _: str(answer)
        ): program_row,
    }
)
_REST = tuple(map(Field, ("task", "system", "rewards", "token_ids", "entry", "options")))
OURS = (_TEXT, _ANSWER, _ID, *_REST)
# Columns in which layouts look for a field: whoever names another one for it means none of them.
_ELSEWHERE: Mapping[str, set[str]] = MappingProxyType(
    {
        "text": {*_TEXT.columns, "question_content", "description"},
        "answer": {*_ANSWER.columns, *ANSWERS.spellings, "canonical_solution", "reward_model"} - {"answer"},
    }
)


def load_prompts(
    name: str, columns: Columns | None = None, key: str = "data.train", split: str = "train"
) -> tuple[Prompt, ...]:
    """Read prompts from a file, glob, folder or hub data set, whatever its layout; the log says which it is.

    `columns` names the file's column of each of ours ({text: question}). Raises UserError, with file and line, for a
    row without what its layout needs, or an id that occurs twice.
    """
    return prompts_of(find_source(name, key, split), columns or {})


def prompts_of(source: Source, columns: Columns) -> tuple[Prompt, ...]:
    """As `load_prompts`, of a source that was found."""
    column_key = f"{source.key.rpartition('.')[0] or 'data'}.columns"
    prompts: list[Prompt] = []
    first: dict[str, str] = {}
    several = len(source.files) > 1
    for file in source.files:
        layout: Layout | None = None
        before = len(prompts)
        for found in file_rows(file):
            row, aside = _set_apart(renamed(found, columns, OURS, column_key), columns)
            made = {found: make(row) for found, make in MADE.items() if layout in (None, found)}
            layout = layout or next((found for found, turned in made.items() if turned), None)
            layout = layout or recognise(row, column_key)
            if layout in MADE:
                if (turned := made[layout]) is None:
                    allowed = f"no {layout.text.columns[0]} (or no question), which the rows before it have"
                    raise UserError(row.where, f"columns {named(row.fields)}", allowed)
                row = turned
            prompt = _prompt(row, layout, several)
            prompt = replace(prompt, columns={**prompt.columns, **aside})
            if prompt.id in first:
                raise UserError(f"{row.where}: id", prompt.id, f"must be unique; first used at {first[prompt.id]}")
            first[prompt.id] = row.where
            prompts.append(prompt)
        assert layout is not None  # a file without rows is an error
        logger.info("%s: %s read as %s: %d prompts", source.key, file, layout.name, len(prompts) - before)
    return tuple(prompts)


def _set_apart(row: Row, columns: Columns) -> tuple[Row, dict[str, Any]]:
    """The row without columns in whose place others are named, and those: they travel with the prompt all the same."""
    meant = {name.lower() for name in columns}
    hidden = set[str]().union(*(names for name, names in _ELSEWHERE.items() if meant & {name, *names}))
    aside = {str(name): as_json(value) for name, value in row.fields.items() if str(name).lower() in hidden}
    aside = {name: value for name, value in aside.items() if value is not None}
    return Row(row.where, {name: value for name, value in row.fields.items() if str(name) not in aside}), aside


def recognise(row: Row, key: str = "data.columns") -> Layout:
    """Return the layout of a row like this one; raises UserError naming what it has and what is needed."""
    for layout in LAYOUTS:
        if layout.fits(row.fields):
            if layout.name == "GSM8K" and "####" not in str(row.fields[layout.answer.find(row.fields) or ""]):
                continue
            return layout
    lacks = "text (as prompt, question or problem)" if _TEXT.find(row.fields) is None else "answer"
    near = did_you_mean(lacks.partition(" ")[0], [str(name) for name in row.fields])
    allowed = f"{near}prompts need a text and an answer: no column for the {lacks}; or name it, {key}="
    allowed += "{" + lacks.partition(" ")[0] + ": COLUMN}"
    if re.search(r"\.[ct]sv\b", row.where):
        allowed += "; the first line names the columns"
    raise UserError(row.where, f"columns {named(row.fields)}", allowed)


def _nested(fields: Mapping[str, Any], wanted: Field) -> tuple[str, Any] | None:
    """The column that holds `wanted`, and its value; a dot goes into an object."""
    outer, _, inner = wanted.name.partition(".")
    if inner:
        value = fields.get(outer)
        found = value.get(inner) if isinstance(value, Mapping) else None
        return None if found is None else (outer, found)
    column = wanted.find(fields)
    return None if column is None else (column, fields[column])


def _prompt(row: Row, layout: Layout, several: bool) -> Prompt:
    fields = row.fields
    question = layout.text.find(fields)
    answer = _nested(fields, layout.answer)
    if question is None or answer is None:
        lacks = layout.text.name if question is None else layout.answer.name
        raise UserError(row.where, f"columns {named(fields)}", f"no {lacks}, which the rows before it have")
    messages, text = _question(fields[question], f"{row.where}: {question}")
    given = {name: fields[name] for name in ("system", "task", "rewards", "token_ids", "entry") if _given(fields, name)}
    if isinstance(given.get("system"), str) and given["system"].strip():
        messages = ({"role": "system", "content": given["system"]}, *(messages or ({"role": "user", "content": text},)))
    name = _ID.find(fields)
    task = text_of(given["task"], f"{row.where}: task") if "task" in given else _task(fields, layout)
    at = f"{row.where}: {answer[0]}" + "".join(f".{part}" for part in layout.answer.name.split(".")[1:])
    reference = layout.reference(answer[1], at)
    if task == MATH and layout.reference in (text_of, _stored):
        reference = of_solution(reference, at)
    used = {question, *given, *([name] if name else [])}
    whole = fields[answer[0]]
    if not isinstance(whole, Mapping | list) and (not isinstance(whole, str) or whole == reference):
        used.add(answer[0])  # else there is more in it
    prompt = Prompt(
        id=_id(row, fields[name] if name else None, several),
        text=text,
        task=task,
        answer=reference,
        messages=messages,
        where=row.where,
        columns={
            str(key): as_json(value)
            for key, value in fields.items()
            if key not in used and key not in layout.left_out and value is not None
        },
    )
    return replace(prompt, **_lists(given, row.where), entry=_entry(given, row.where))


def _given(fields: Mapping[str, Any], name: str) -> bool:
    return fields.get(name) is not None


def _question(value: Any, where: str) -> tuple[tuple[Message, ...], str]:
    """The conversation that asks, and the question itself: its last message."""
    value = conversation_in(value)
    if isinstance(value, str):
        return (), text_of(value, where)
    messages = read_messages(value, where)
    if messages[-1]["role"] != "user":
        raise UserError(where, messages[-1]["role"], "must end with a user's message: the question")
    text = text_of(messages[-1]["content"], where)
    return (messages if len(messages) > 1 else ()), text


def _id(row: Row, given: Any, several: bool) -> str:
    """The row's own id, else its place; of several files, with the file's name."""
    file, _, place = row.where.rpartition(":")
    stem = file.rpartition("/")[2] or file
    if given is None:
        return f"{stem}:{place.strip().removeprefix('row ')}"
    own = text_of(given, f"{row.where}: id")
    return f"{stem}:{own}" if several else own


def _task(fields: Mapping[str, Any], layout: Layout) -> str:
    ability = fields.get("ability")
    return "code" if layout.name == "verl" and isinstance(ability, str) and "cod" in ability.lower() else layout.task


def _lists(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind, allowed in (
        ("rewards", str, "must be a list of strings"),
        ("token_ids", int, "must be a list of token ids (integers of at least 0)"),
    ):
        value = given.get(name)
        if value is None:
            continue
        good = isinstance(value, list) and all(type(item) is kind for item in value)
        if not good or (kind is int and any(item < 0 for item in value)):
            raise UserError(f"{where}: {name}", short(value), allowed)
        found[name] = tuple(value)
    return found


def _entry(given: Mapping[str, Any], where: str) -> str:
    value = given.get("entry", "")
    if not isinstance(value, str):
        raise UserError(f"{where}: entry", short(value), "must be a string (JSON)")
    return value
