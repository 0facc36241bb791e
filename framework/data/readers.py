"""Reading and writing JSON-lines files; every fault names the file, the line and what is wrong with it."""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from framework.data.remote import DataFile
from framework.errors import UserError, did_you_mean
from framework.types import Prompt


@dataclass(frozen=True)
class Row:
    """One JSON object of a file, with `where` it stands ("file:line") for error messages."""

    where: str
    fields: Mapping[str, Any]


_STRINGS = "a list of strings"
_TOKENS = "a list of token ids (integers of at least 0)"
_MESSAGES, _OBJECT = "a list of objects", "an object"
# field -> what its value must be
_PROMPT = {
    "id": "a string",
    "text": "a string",
    "task": "a string",
    "answer": "a string",
    "rewards": _STRINGS,
    "token_ids": _TOKENS,
    "entry": "a string",
    "messages": _MESSAGES,
    "columns": _OBJECT,
    "opened": "a string",
}
_PROMPT_REQUIRED = ("id", "text", "task", "answer")


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a PromptSet's file, a `Prompt` a line; a user's own are for `data.layouts.prompts`.

    Raises UserError for a missing, empty or corrupt file, a missing, unknown or wrong field, an id that occurs twice.
    """
    prompts = []
    for row in _unique(read_rows(path)):
        fields = dict(row.fields)
        _check(row, _PROMPT, _PROMPT_REQUIRED)
        for name in ("rewards", "token_ids", "messages"):
            fields[name] = tuple(fields.get(name, ()))
        prompts.append(Prompt(**fields, where=row.where))
    return tuple(prompts)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    """Write one prompt a line, whole or not at all; returns how many."""
    rows = map(asdict, prompts)
    return write_rows(path, ({key: value for key, value in row.items() if key != "where"} for row in rows))


def read_rows(path: DataFile) -> Iterator[Row]:
    """Yield the JSON objects of a .jsonl file (.gz, .zst); blank lines are skipped, a file without any is an error."""
    found = False
    with open_data(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            found = True
            yield parse_row(line, f"{path}:{number}", first=number == 1)
    if not found:
        raise UserError(str(path), "an empty file", "needs at least one line")


def parse_row(line: bytes, where: str, first: bool) -> Row:
    """Return the JSON object in a line; raises UserError as `parse_json`, and for what is no object."""
    fields = parse_json(line.rstrip(), where, first)
    if not isinstance(fields, dict):
        raise UserError(where, _excerpt(line), "must be a JSON object, one a line")
    return Row(where, fields)


def parse_json(content: bytes, where: str, first: bool) -> Any:
    """Return what `content` holds; a byte order mark may come `first` in a file. Raises UserError for what is wrong."""
    try:
        text = content.decode("utf-8-sig" if first else "utf-8")
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise UserError(where, _excerpt(content), f"is not UTF-8 (byte {error.start + 1} of it)") from None
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise UserError(where, _excerpt(content), f"is not JSON: {error.msg} at {place}") from None
    except RecursionError:
        raise UserError(where, _excerpt(content), "is nested too deeply") from None
    except _NoJson as error:
        raise UserError(where, _excerpt(content), str(error)) from None
    except ValueError:  # Python reads no integer of more than 4,300 digits
        raise UserError(
            where, _excerpt(content), "holds a number of thousands of digits: write it as a string"
        ) from None
    if b"\\ud" in content or b"\\uD" in content:  # the only way in which JSON can hold half of a pair
        check_unicode(found, where)
    return found


class _NoJson(ValueError):
    """What Python's reader takes, though it is no JSON, or says two things at once."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _NoJson(f"has the field {twice!r} twice: which of them counts?")
    return found


def _refuse_constant(name: str) -> Any:
    raise _NoJson(f"holds {name}, which is no number: leave the field out, or write null")


def check_unicode(value: Any, where: str) -> None:
    """Raise UserError if a string anywhere in `value` holds half of a surrogate pair."""
    if isinstance(value, str):
        if not is_unicode(value):
            raise UserError(where, value[:60], "holds half of a surrogate pair, which is no text")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_unicode(key, where)
            check_unicode(item, f"{where}: {key}" if ": " not in where else where)
    elif isinstance(value, list):
        for item in value:
            check_unicode(item, where)


@contextmanager
def open_data(path: DataFile) -> Iterator[BinaryIO]:
    """Open a file to read, unpacked if it ends in .gz or .zst; whatever fails while it is read is a UserError."""
    try:
        with _unpacked(path) as file:
            yield file
    except FileNotFoundError:
        here = isinstance(path, Path) and path.parent.is_dir()
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if here else ""  # type: ignore[union-attr]
        raise UserError(str(path), "no such file", f"{near}must be a file that is there") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(str(path), str(error), "is a damaged gzip file") from None
    except OSError as error:
        allowed = "is a damaged zst file" if path.suffix == ".zst" and not error.strerror else "must be a readable file"
        raise UserError(str(path), error.strerror or str(error), allowed) from None


def _unpacked(path: DataFile) -> BinaryIO:
    file = path.open("rb")
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if path.suffix != ".zst":
        return file
    import pyarrow as pa  # its codec: Python has none before 3.14

    return cast(BinaryIO, io.BufferedReader(pa.input_stream(file, compression="zstd")))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, uncompressed, to a temporary file, then rename it; returns how many.

    Raises UserError if the folder cannot be written or the disk is full; what stood there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                count += 1
        temporary.replace(path)
    except OSError as error:
        raise UserError(str(path), error.strerror or str(error), "must be a place that can be written") from None
    finally:
        if temporary.is_file():
            temporary.unlink()
    return count


def _unique(rows: Iterable[Row]) -> Iterator[Row]:
    first: dict[str, str] = {}
    for row in rows:
        key = row.fields.get("id")
        if isinstance(key, str):  # anything else is the field check's to report
            if key in first:
                raise UserError(f"{row.where}: id", key, f"must be unique; first used at {first[key]}")
            first[key] = row.where
        yield row


def _check(row: Row, known: Mapping[str, str], required: tuple[str, ...]) -> None:
    """Raise UserError for an unknown field, a missing one, or a value of the wrong type."""
    for name in row.fields:
        if name not in known:
            raise UserError(row.where, name, f"{did_you_mean(name, known)}fields are {', '.join(known)}")
    for name in required:
        if name not in row.fields:
            raise UserError(row.where, f"no field '{name}'", f"fields {', '.join(required)} must be there")
    for name, value in row.fields.items():
        if not _fits(value, known[name]):
            raise UserError(f"{row.where}: {name}", _short(value), f"must be {known[name]}")
    for name in ("id", "text"):
        if name in required and not row.fields[name].strip():
            raise UserError(f"{row.where}: {name}", row.fields[name], "must not be empty")


def _fits(value: object, kind: str) -> bool:
    if kind is _STRINGS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is _TOKENS:
        return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    if kind is _MESSAGES:
        return isinstance(value, list) and all(isinstance(item, dict) for item in value)
    if kind is _OBJECT:
        return isinstance(value, dict)
    return isinstance(value, str)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(line: bytes) -> str:
    text = line.strip().decode(errors="replace")
    return text if len(text) <= 60 else text[:60] + "…"


def _short(value: object) -> object:
    text = repr(value)
    return value if len(text) <= 60 else text[:60] + "…"
