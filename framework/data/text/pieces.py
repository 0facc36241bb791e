"""A corpus cut into pieces of about equal size: files, parts of large JSON-lines files, many small files together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from framework.data.layouts.columns import Columns
from framework.data.layouts.documents import text_in
from framework.data.readers import Row, open_data, parse_row
from framework.data.remote import DataFile, size_of
from framework.data.rows import file_rows, kind_of
from framework.errors import UserError


@dataclass(frozen=True)
class Piece:
    """The lines of a file that begin in bytes `start` to `end` - 1; the whole file where `end` is None."""

    source: str
    file: DataFile
    start: int = 0
    end: int | None = None

    def __str__(self) -> str:
        return f"{self.file}" if self.end is None else f"{self.file}, bytes {self.start} to {self.end}"


def cut(sources: Sequence[tuple[str, Sequence[DataFile]]], size: int) -> list[tuple[Piece, ...]]:
    """Cut files into shards of about `size` bytes each, in their order; what is packed stays whole."""
    shards: list[tuple[Piece, ...]] = []
    together: list[Piece] = []
    room = size
    for source, files in sources:
        for file in files:
            length = size_of(file)
            if kind_of(file) in (".jsonl", ".ndjson") and file.suffix not in (".gz", ".zst") and length > size:
                parts = [Piece(source, file, at, min(at + size, length)) for at in range(0, length, size)]
            else:
                parts = [Piece(source, file)]
            for part in parts:
                weight = length if part.end is None else part.end - part.start
                if together and weight > room:
                    shards.append(tuple(together))
                    together, room = [], size
                together.append(part)
                room -= weight
    return [*shards, tuple(together)] if together else shards


def texts_of(piece: Piece, columns: Columns, key: str, without: Collection[int] = ()) -> Iterator[str | UserError]:
    """Yield the text of every row, or what is wrong with the row; an empty text of a page that has none.

    The pages at the places `without`, which a process did not survive, are errors.
    Raises UserError for a file that can't be read on, behind which row: it is missing, damaged, of no known kind, or
    without rows.
    """
    row = 0
    try:
        for text in _texts(piece, columns, key, without):
            row += 1
            yield text
    except UserError as error:
        if error.where != str(piece.file) or not row or piece.start:
            raise
        raise UserError(f"{error.where}: behind row {row}", error.value, error.allowed) from None


def _texts(piece: Piece, columns: Columns, key: str, without: Collection[int]) -> Iterator[str | UserError]:
    kind = kind_of(piece.file)
    if kind == ".txt":  # a file is a row: one that is no text is one bad row of many
        try:
            yield text_in(next(file_rows(piece.file)), columns, key)
        except UserError as error:
            if "UTF-8" not in error.allowed and "empty" not in error.allowed:
                raise
            yield error
        return
    for row in _lines(piece) if kind in (".jsonl", ".ndjson") else file_rows(piece.file, without):
        try:
            if isinstance(row, UserError):
                yield row
            elif kind == ".warc" and "text" not in row.fields:
                found = row.fields.get("error", "a page that ends the process which unpacks it")
                yield UserError(row.where, found, "must be a page that can be unpacked")
            elif kind == ".warc" and not row.fields["text"].strip():
                yield ""
            else:
                yield text_in(row, columns, key)
        except UserError as error:
            yield _placed(error, piece)


def _lines(piece: Piece) -> Iterator[Row | UserError]:
    """The JSON objects of a piece; a line belongs to the piece in which it begins."""
    with open_data(piece.file) as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()  # the rest of a line that began before, or the end of the line before
        at, number, found = (file.tell() if piece.start else 0), 0, bool(piece.start)
        while piece.end is None or at < piece.end:
            line = file.readline()
            if not line:
                break
            number, begins, at = number + 1, at, at + len(line)
            if line.strip():
                found = True
                try:
                    yield parse_row(line, f"{piece.file}:{number}", first=begins == 0)
                except UserError as error:
                    yield _placed(error, piece)
        if not found:
            raise UserError(str(piece.file), "an empty file", "needs at least one row")


def _placed(error: UserError, piece: Piece) -> UserError:
    """The error with the line's number in its file; until one is wrong, nobody counts the lines before a piece."""
    place = re.match(re.escape(f"{piece.file}:") + r"(\d+)", error.where)
    if not piece.start or place is None:
        return error
    before = 0
    with piece.file.open("rb") as file:
        while file.tell() < piece.start:
            file.readline()
            before += 1
    where = f"{piece.file}:{before + int(place[1])}{error.where[place.end() :]}"
    return UserError(where, error.value, error.allowed)
