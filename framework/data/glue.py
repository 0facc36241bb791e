"""Labelled texts as GLUE publishes them (1804.07461): SST-2's sentence and label, or a pair of texts and a label.

    sentence<TAB>label                         hide new secretions from the parental units<TAB>0
    index<TAB>sentence1<TAB>sentence2<TAB>label   RTE, WNLI; other tasks have names of their own for the same

GLUE's .tsv files know no quotes; tables of other kinds are read with `data.rows`. CoLA's file has no header: it names
none of the columns, and is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from framework.data.layouts.columns import Field, named, text_of
from framework.data.readers import Row, open_data
from framework.data.remote import DataFile
from framework.data.rows import file_rows, kind_of
from framework.data.sources import find_source
from framework.errors import UserError

_FIRST = Field("sentence1", ("premise", "question1", "#1 String", "question"))
_SECOND = Field("sentence2", ("hypothesis", "question2", "#2 String", "sentence"))
_ALONE = Field("sentence", ("text",))
_LABEL = Field("label", ("gold_label", "is_duplicate", "Quality"))
UNLABELLED = "-1"  # GLUE's test sets on the hub


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of them, and its class as the file writes it."""

    text: str
    label: str
    pair: str = ""


def read_labelled(name: str, key: str, split: str, most: int = 0) -> list[LabelledText]:
    """Read the first `most` (0: all) labelled texts of what `name` names; raises UserError with file and line."""
    rows = itertools.chain.from_iterable(map(_rows, find_source(name, key, split).files))
    found = [_labelled(row) for row in itertools.islice(rows, most or None)]
    if not found:
        raise UserError(key, name, "must hold a labelled text")
    return found


def classes_of(train: Iterable[LabelledText], heldout: Iterable[LabelledText], key: str) -> list[str]:
    """Return the labels that are learned, sorted; raises UserError for fewer than two, or a held-out one of no text."""
    classes = sorted({each.label for each in train})
    if len(classes) < 2:
        raise UserError(f"{key}.train", ", ".join(classes), "must hold texts of two labels or more")
    for each in heldout:
        if each.label not in classes:
            raise UserError(f"{key}.heldout", each.label, f"labels that are learned: {', '.join(classes)}")
    return classes


def _labelled(row: Row) -> LabelledText:
    label, alone = _LABEL.find(row.fields), _ALONE.find(row.fields)
    first, second = (field.find(row.fields) for field in (_FIRST, _SECOND))
    pair = first is not None and second is not None
    if label is None or not (pair or alone):
        allowed = "must be sentence and label, or sentence1, sentence2 and label, as GLUE's files have them"
        raise UserError(row.where, f"columns {named(row.fields)}", allowed)
    said = text_of(row.fields[label], f"{row.where}: {label}")
    if said == UNLABELLED:
        raise UserError(f"{row.where}: {label}", said, "must be a label: a test set of GLUE has none")
    columns: Sequence[str] = [str(first), str(second)] if pair else [str(alone)]
    texts = [text_of(row.fields[column], f"{row.where}: {column}") for column in columns]
    return LabelledText(texts[0], said, texts[1] if pair else "")


def _rows(file: DataFile) -> Iterator[Row]:
    if kind_of(file) != ".tsv":
        yield from file_rows(file)
        return
    with open_data(file) as lines:
        header: list[str] | None = None
        for number, raw in enumerate(lines, start=1):
            try:
                values = raw.decode("utf-8-sig").rstrip("\r\n").split("\t")
            except UnicodeDecodeError:
                raise UserError(f"{file}:{number}", "bytes", "is not UTF-8") from None
            if header is None:
                header = values
            elif values != [""]:
                if len(values) != len(header):
                    raise UserError(f"{file}:{number}", f"{len(values)} values", f"the header has {len(header)}")
                yield Row(f"{file}:{number}", dict(zip(header, values, strict=True)))
