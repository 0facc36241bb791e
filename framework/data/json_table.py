"""Tables in JSON that are no list of objects: columns, as pandas and `datasets` write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from framework.errors import UserError

_SPELT = ({"role", "content"}, {"role", "tool_calls"}, {"role", "value"}, {"from", "value"})


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages: objects with a role and a content."""
    objects = isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)
    return objects and all(any(keys <= one.keys() for keys in _SPELT) for one in value)


def json_table(found: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    """Return the rows of a table of columns; None for an object that is none. Raises UserError for uneven columns.

    {"question": ["a", "b"], "answer": ["1", "2"]}
    {"question": {"0": "a", "1": "b"}, "answer": {"0": "1", "1": "2"}}
    {"columns": ["question", "answer"], "data": [["a", "1"], ["b", "2"]]}
    """
    names, data = found.get("columns"), found.get("data")
    if isinstance(names, list) and isinstance(data, list) and data and all(isinstance(row, list) for row in data):
        for place, row in enumerate(data, start=1):
            if len(row) != len(names):
                raise UserError(f"{where}: row {place}", f"{len(row)} values", f"columns names {len(names)}")
        return [dict(zip(map(str, names), row, strict=True)) for row in data]
    columns = found
    if found and all(isinstance(value, dict) and value for value in found.values()):
        rows = list(next(iter(found.values())))
        numbered = all(row.isdigit() for row in rows) and not all(name.isdigit() for name in found)
        if not numbered or any(list(value) != rows for value in found.values()) or _of_objects(found):
            return None
        columns = {name: list(value.values()) for name, value in found.items()}
    elif not found or not all(isinstance(value, list) for value in found.values()) or _is_a_row(found):
        return None
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        if any(map(_holds_rows, columns.values())):
            return None
        said = ", ".join(f"{name} of {size}" for name, size in list(sizes.items())[:4])
        raise UserError(where, f"columns {said}", "a table's columns must have a value for every row")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_a_row(found: Mapping[str, Any]) -> bool:
    """{"messages": [{"role": ...}]}, or rows under their names: {"train": [{...}], "test": [{...}]}."""
    return any(map(is_conversation, found.values())) or all(map(_holds_rows, found.values()))


def _holds_rows(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value)


def _of_objects(found: Mapping[str, Any]) -> bool:
    """{"problems": {"0": {...}, "1": {...}}}: rows under a name, not a column of objects."""
    return all(_holds_rows(list(value.values())) for value in found.values())
