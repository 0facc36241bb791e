"""Reading and writing JSON-lines files; every fault names the file, the line and what is wrong with it."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.errors import UserError, did_you_mean
from framework.types import Prompt


@dataclass(frozen=True)
class Document:
    """One text of a TextSet."""

    id: str
    text: str


@dataclass(frozen=True)
class Row:
    """One JSON object of a file, with `where` it stands ("file:line") for error messages."""

    where: str
    fields: Mapping[str, Any]


_STRINGS = "a list of strings"
_TOKENS = "a list of token ids (integers of at least 0)"
# field -> what its value must be
_DOCUMENT = {"id": "a string", "text": "a string"}
_PROMPT = {
    **_DOCUMENT,
    "task": "a string",
    "answer": "a string",
    "rewards": _STRINGS,
    "token_ids": _TOKENS,
    "entry": "a string",
}
_PROMPT_REQUIRED = ("id", "text", "task", "answer")


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts: `id`, `prompt` (or `text`), `answer`, `task`; optional `rewards`, `token_ids`, `entry`.

    Raises UserError for a missing, empty or corrupt file, a missing, unknown or wrong field, an id that occurs twice.
    """
    prompts = []
    for row in _unique(read_rows(path)):
        fields = dict(row.fields)
        if "prompt" in fields and "text" not in fields:  # what a user's own file says
            fields["text"] = fields.pop("prompt")
        _check(Row(row.where, fields), _PROMPT, _PROMPT_REQUIRED)
        for name in ("rewards", "token_ids"):
            fields[name] = tuple(fields.get(name, ()))
        prompts.append(Prompt(**fields))
    return tuple(prompts)


def read_documents(path: Path) -> Iterator[Document]:
    """Yield the documents (`id`, `text`) one by one; raises UserError as `read_prompts` does, once it gets there."""
    for row in _unique(read_rows(path)):
        _check(row, _DOCUMENT, tuple(_DOCUMENT))
        yield Document(**row.fields)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> int:
    """Write one prompt a line, whole or not at all; returns how many."""
    return write_rows(path, map(asdict, prompts))


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write one document a line, whole or not at all; returns how many."""
    return write_rows(path, map(asdict, documents))


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the JSON objects of a .jsonl or .jsonl.gz file; blank lines are skipped, a file without any is an error."""
    found = False
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(where, _excerpt(line), f"is not UTF-8 (byte {error.start + 1} of the line)") from None
        except json.JSONDecodeError as error:
            raise UserError(where, _excerpt(line), f"is not JSON: {error.msg} at column {error.colno}") from None
        except RecursionError:
            raise UserError(where, _excerpt(line), "is nested too deeply") from None
        if not isinstance(fields, dict):
            raise UserError(where, _excerpt(line), "must be a JSON object, one a line")
        found = True
        yield Row(where, fields)
    if not found:
        raise UserError(str(path), "an empty file", "needs at least one line")


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


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
        raise UserError(str(path), "no such file", f"{near}must be a .jsonl file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(str(path), str(error), "is a damaged gzip file") from None
    except OSError as error:
        raise UserError(str(path), error.strerror or str(error), "must be a readable .jsonl file") from None


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
        if isinstance(value, str) and not is_unicode(value):
            raise UserError(f"{row.where}: {name}", value[:60], "holds half of a surrogate pair, which is no text")
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
