"""What the layouts share: looking columns up, renaming them as the user says, and saying what a file lacks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from framework.data.readers import Row
from framework.errors import UserError, did_you_mean

Columns = Mapping[str, str]  # our name -> the file's; a dot goes into an object: reward_model.ground_truth


@dataclass(frozen=True)
class Field:
    """A field and the columns that may hold it, the likeliest first; names count without case."""

    name: str
    columns: tuple[str, ...] = ()

    @property
    def spellings(self) -> set[str]:
        """All of its names, without case."""
        return {column.lower() for column in (self.name, *self.columns)}

    def find(self, fields: Mapping[str, Any]) -> str | None:
        """Return the column of `fields` that holds it."""
        lower = {str(column).lower(): column for column in reversed(list(fields))}
        for column in (self.name, *self.columns):
            if column.lower() in lower and fields[lower[column.lower()]] is not None:
                return lower[column.lower()]
        return None


def renamed(row: Row, columns: Columns, known: Sequence[Field], key: str) -> Row:
    """Return the row with the columns that `columns` names under our names; others keep theirs, and stand behind.

    Another spelling of a field of ours counts as its name. Raises UserError for a name that is not ours or there twice,
    a column that the row does not have, or a name and a column in each other's place.
    """
    if not columns:
        return row
    fields, chosen = dict(row.fields), dict[str, Any]()
    names = [field.name for field in known]
    for given, theirs in columns.items():
        ours = given if given in names else next((f.name for f in known if given.lower() in f.spellings), None)
        has = f"{row.where} has {named(row.fields)}"
        if theirs in names and theirs not in row.fields and given in row.fields:
            raise UserError(f"{key}.{given}", theirs, f"the other way round: {key}={{{theirs}: {given}}}; {has}")
        if ours is None:
            raise UserError(f"{key}.{given}", theirs, f"{did_you_mean(given, names)}names are {', '.join(names)}")
        if ours in chosen:
            raise UserError(f"{key}.{given}", theirs, f"is {ours} again, which another column is said to be")
        value: Any = row.fields
        for part in [theirs] if theirs in row.fields else theirs.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise UserError(f"{key}.{given}", theirs, f"{did_you_mean(theirs, map(str, row.fields))}{has}")
            value = value[part]
        chosen[ours] = value
        fields.pop(theirs, None)
    return Row(row.where, {**chosen, **{name: value for name, value in fields.items() if name not in chosen}})


def named(fields: Iterable[Any]) -> str:
    """List column names for a message, those without a value as such."""
    empty = {name for name, value in fields.items() if value is None} if isinstance(fields, Mapping) else set()
    names = [f"{name} (null)" if name in empty else str(name) for name in fields]
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else "no columns"


def text_of(value: Any, where: str) -> str:
    """Return a column's text; numbers as they are written. Raises UserError for what is neither, or nothing but blanks.

    A whole float loses its ".0": tables hold integers with gaps as floats.
    """
    good = isinstance(value, str | int) or (isinstance(value, float | Decimal) and math.isfinite(value))
    if isinstance(value, bool) or not good:
        raise UserError(where, short(value), "must be a text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if not text.strip():
        raise UserError(where, text, "must not be empty")
    return text


def short(value: Any) -> Any:
    """Cut what a message would quote."""
    text = repr(value)
    return value if len(text) <= 60 else text[:60] + "…"
