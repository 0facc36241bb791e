"""Reads the rows of a piece in a process beside this one: a row that kills it is left out, where it can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from framework.data.layouts.columns import Columns
from framework.data.rows import kind_of
from framework.data.text.beside import Died, OneByOne
from framework.data.text.pieces import Piece, texts_of
from framework.errors import UserError

Text = str | UserError


@dataclass
class _Reading:
    """What the process beside is at."""

    of: tuple[Piece, frozenset[int]]
    row: int
    texts: Iterator[Text]


_reading: list[_Reading] = []  # one, in the process beside


def texts_beside(piece: Piece, columns: Columns, key: str) -> Iterator[Text]:
    """Yield what `texts_of` does; a page that kills its reader is an error among them.

    Raises UserError, naming the row, where nothing behind it can be read either: of an archive alone pages are unpacked
    one by one.
    """
    without, row = frozenset[int](), 0
    with OneByOne() as beside:
        while True:
            where = f"{piece}: row {row + 1}"
            try:
                found = beside.of(where, _next, piece, columns, key, without, row)
            except Died as died:
                if kind_of(piece.file) != ".warc" or row in without:
                    allowed = "must be a row that does not end the process that reads it"
                    raise UserError(where, str(died), allowed) from None
                without |= {row}
                continue
            if found is None:
                return
            yield found
            row += 1


def _next(piece: Piece, columns: Columns, key: str, without: frozenset[int], row: int) -> Text | None:
    """Return what is in a row, None behind the last one; a fresh process goes through all rows before it."""
    if not _reading or _reading[0].of != (piece, without) or _reading[0].row != row:
        texts = texts_of(piece, columns, key, without)
        _reading[:] = [_Reading((piece, without), row, islice(texts, row, None))]
    _reading[0].row += 1
    return next(_reading[0].texts, None)
