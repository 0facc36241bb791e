"""Documents for pretraining: a column of text in any table, a .txt file as one document."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from framework.data.layouts.columns import Columns, Field, named, renamed
from framework.data.readers import Document
from framework.data.sources import Source, find_source
from framework.errors import UserError

logger = logging.getLogger("framework.data")

_TEXT = Field("text", ("content", "raw_content", "document", "body"))
OURS = ("text",)


def load_documents(name: str, columns: Columns | None = None, key: str = "data.documents") -> Iterator[Document]:
    """Yield the documents of a file, glob, folder or hub data set; an id is the file's name and the line or row.

    Raises UserError, with file and line, for a row without text.
    """
    yield from documents_of(find_source(name, key), columns or {})


def documents_of(source: Source, columns: Columns) -> Iterator[Document]:
    """As `load_documents`, of a source that was found; of several files, ids begin with the file's number."""
    column_key = f"{source.key.rpartition('.')[0] or 'data'}.columns"
    several = len(source.files) > 1
    places = {str(file): place for place, file in enumerate(source.files, start=1)}
    said = False
    for found in source.rows():
        row = renamed(found, columns, OURS, column_key)
        column = _TEXT.find(row.fields)
        if column is None:
            allowed = f"documents need a column text; or name it, {column_key}={{text: COLUMN}}"
            raise UserError(row.where, f"columns {named(row.fields)}", allowed)
        if not said:
            logger.info("%s: %s read as documents, column %s", source.key, source.name, column)
            said = True
        text = row.fields[column]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{row.where}: {column}", repr(text)[:60], "must be a string that is not empty")
        file, number = _place(row.where)
        prefix = f"{places[file]}-" if several else ""
        yield Document(f"{prefix}{file.rpartition('/')[2]}:{number}", text.removeprefix("\ufeff"))


def _place(where: str) -> tuple[str, str]:
    """File and number of "file:7", "file: row 7" or, for a text file, "file" alone."""
    for kind in (": row ", ":"):
        file, found, number = where.rpartition(kind)
        if found and number.strip().isdigit():
            return file, number.strip()
    return where, "1"
