"""Documents for pretraining: a column of text in any table, a .txt file as one document."""

from __future__ import annotations

from framework.data.layouts.columns import Columns, Field, named, renamed
from framework.data.readers import Row
from framework.errors import UserError

_TEXT = Field("text", ("content", "raw_content", "document", "body"))


def text_in(row: Row, columns: Columns, key: str) -> str:
    """Return the text of a row; raises UserError, with file and line, for a row without. `key` names the data."""
    column_key = f"{key.rpartition('.')[0] or 'data'}.columns"
    fields = renamed(row, columns, (_TEXT,), column_key).fields
    column = _TEXT.find(fields)
    if column is None:
        allowed = f"documents need a column text; or name it, {column_key}={{text: COLUMN}}"
        raise UserError(row.where, f"columns {named(fields)}", allowed)
    text = fields[column]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{row.where}: {column}", repr(text)[:60], "must be a string that is not empty")
    return text.removeprefix("\ufeff")
