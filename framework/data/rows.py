"""The rows of one data file, whatever its kind; every fault names the file, the line or row, and what is wrong."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from framework.data.json_table import is_conversation, json_table
from framework.data.readers import Row, check_unicode, open_data, parse_json, read_rows
from framework.data.remote import DataFile
from framework.data.text.warc import warc_rows
from framework.errors import UserError

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".txt", ".warc")
_PACKED = (".gz", ".zst")
_POINTER = b"version https://git-lfs"
_LETTERS = list("ABCD")
_MMLU = ("question", *_LETTERS, "answer")  # what its authors' files hold: they name no columns, the subject names them


def kind_of(file: DataFile) -> str | None:
    """Return the ending that says how a file is read, ".jsonl" for a.jsonl.gz; None for one that is not read."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = bool(suffixes) and suffixes[-1] in _PACKED
    kind = (suffixes[:-1] if packed else suffixes)[-1:] or [""]
    if kind[0] not in KINDS or (packed and kind[0] in (".parquet", ".arrow")):
        return None
    return kind[0]


def file_rows(file: DataFile, without: Collection[int] = ()) -> Iterator[Row]:
    """Yield the rows of one file; raises UserError for a file without any.

    An archive's pages at the places `without` are not unpacked and have no text.
    """
    _check_content(file)
    kind, found = kind_of(file), False
    readers = {".json": _json, ".parquet": _parquet, ".arrow": _arrow, ".csv": _csv, ".tsv": _csv, ".txt": _text}
    readers[".warc"] = partial(warc_rows, without=without)
    for row in readers.get(kind or "", read_rows)(file):
        found = True
        yield row
    if not found:
        raise UserError(str(file), "an empty file", "needs at least one row")


def _check_content(file: DataFile) -> None:
    """Raise UserError for what Git leaves where the data itself was not fetched."""
    if isinstance(file, Path) and file.is_file() and file.stat().st_size < 1024:
        with file.open("rb") as opened:
            if opened.read(len(_POINTER)) == _POINTER:
                raise UserError(str(file), "a pointer of Git LFS", "must be the data itself: git lfs pull")


def _text(file: DataFile) -> Iterator[Row]:
    """A whole file as one row; a byte order mark is no part of the text."""
    with open_data(file) as lines:
        content = lines.read()
    try:
        yield Row(str(file), {"text": content.decode("utf-8-sig")})
    except UnicodeDecodeError as error:
        raise UserError(str(file), f"byte {error.start + 1}", "is not UTF-8") from None


def _json(file: DataFile) -> Iterator[Row]:
    """A list of objects; an object of them by name; or such a list or object under one name ("data", "problems").

    Or a table of columns as pandas writes it (lists, objects by row number, `columns` with `data`). An object a line
    is read as .jsonl is.
    """
    with open_data(file) as lines:
        content = lines.read()
    first, _, rest = content.strip().partition(b"\n")
    if first.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{"):
        yield from read_rows(file)
        return
    found = parse_json(content, str(file), first=True)
    rows = _records(found, str(file))
    if rows is None:
        raise UserError(str(file), type(found).__name__, "must be a list of JSON objects, or an object that holds one")
    for name, fields in rows:
        where = f"{file}: {name}"
        if not isinstance(fields, dict):
            raise UserError(where, repr(fields)[:60], "must be a JSON object")
        check_unicode(fields, where)
        yield Row(where, fields)


def _records(found: Any, where: str) -> list[tuple[str, Any]] | None:
    if isinstance(found, list):
        return [(f"row {number}", fields) for number, fields in enumerate(found, start=1)]
    if not isinstance(found, dict):
        return None
    if (table := json_table(found, where)) is not None:
        return _records(table, where)
    if found and all(isinstance(value, dict) for value in found.values()):
        nested = next(iter(found.values()))
        if not (nested and all(isinstance(value, dict) for value in nested.values())):
            return list(found.items())
    lists = {name: value for name, value in found.items() if _holds_objects(value)}
    if len(lists) > 1 and "data" not in lists:
        allowed = "holds several lists of objects, of which one must be the rows: give it a file of its own"
        raise UserError(where, ", ".join(lists)[:60], allowed)
    if lists:  # beside it stand version, licence and the like
        return _records(lists.get("data", next(iter(lists.values()))), where)
    for value in found.values():
        if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
            return list(value.items())
    return [("row 1", found)] if found else None


def _holds_objects(value: Any) -> bool:
    """Whether a value is a list of rows: messages of a conversation are none."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and not is_conversation(value)


def _csv(file: DataFile) -> Iterator[Row]:
    """The first line names the columns; MMLU's own files have none, and are known by the letter that ends each line."""
    with open_data(file) as raw:
        content = raw.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}", f"byte {error.start + 1} of the file", "is not UTF-8") from None
    stream = io.StringIO(text, newline="")
    head, skipped = text.partition("\n")[0], 0
    if said := re.fullmatch(r"sep=(.)\r?", head):  # a line that tells spreadsheets
        stream.readline()
        skipped = 1
    outside = re.sub(r'"[^"]*"', "", head)
    separator = "\t" if kind_of(file) == ".tsv" else next((mark for mark in ",;\t|" if mark in outside), ",")
    separator = said[1] if said else separator
    spaced = f"{separator} " in outside and all(name[:1] == " " for name in outside.split(separator)[1:])
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(stream, delimiter=separator, strict=True, skipinitialspace=spaced)
    try:
        first, beside = next(reader, []), dict[str, str]()
        header = [name.strip() for name in first]
        rows: Iterator[list[str]] = reader
        if len(header) == len(_MMLU) and header[-1] in _LETTERS and header[2:5] != _LETTERS[:3]:
            beside["subject"] = re.sub(r"_(test|val|dev)$", "", file.name.partition(".")[0])
            header, rows = list(_MMLU), chain([first], reader)
        if len(set(header)) != len(header):
            raise UserError(f"{file}:{1 + skipped}", ", ".join(header)[:60], "must name each column once")
        for values in rows:
            where = f"{file}:{reader.line_num + skipped}"
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(where, f"{len(values)} values", f"the header names {len(header)} columns")
            yield Row(where, {**dict(zip(header, values, strict=True)), **beside})
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num + skipped}", str(error), "must be comma-separated values") from None


def _parquet(file: DataFile) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with file.open("rb") as opened, parquet.ParquetFile(opened) as table:
            yield from _batches(file, table.iter_batches())
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(file), " ".join(str(error).split())[:200], "must be a readable parquet file") from None


def _arrow(file: DataFile) -> Iterator[Row]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) if isinstance(file, Path) else file.open() as source:
            yield from _batches(file, pa.ipc.open_stream(source))
    except (pa.ArrowException, OSError) as error:
        allowed = "must be a table as `datasets` saves it (an Arrow stream)"
        raise UserError(str(file), " ".join(str(error).split())[:200], allowed) from None


def _batches(file: DataFile, batches: Any) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for fields in _plain(file, batch, number):
            number += 1
            yield Row(f"{file}: row {number}", fields)


def _plain(file: DataFile, batch: Any, before: int) -> list[Mapping[str, Any]]:
    """The rows of a record batch; one by one only where a string of it is no text."""
    try:
        rows: list[Mapping[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    column[place].as_py()
                except UnicodeDecodeError as error:
                    where = f"{file}: row {before + place + 1}: {name}"
                    raise UserError(where, f"byte {error.start + 1}", "is not UTF-8") from None
        raise
    return rows


def as_json(value: Any) -> Any:
    """Return a value of a table as JSON can hold it: times and decimals as text, bytes by their length, NaN as null."""
    return json.loads(json.dumps(value, default=_as_text), parse_constant=_missing)


def _missing(name: str) -> None:
    """NaN is how tables write that a number is not there; infinities have no place in JSON either."""


def _as_text(value: object) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
