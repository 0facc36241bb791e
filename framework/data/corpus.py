"""A user's own pretraining text: .jsonl (or .jsonl.gz) and .parquet with a field "text", .txt as one document each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from framework.data.readers import Document, is_unicode, read_rows
from framework.errors import UserError

_KINDS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")


def check_corpus(files: Sequence[Path]) -> None:
    """Raise UserError for a file that is not there, not of a kind that is read, or named twice."""
    for place, file in enumerate(files):
        if not file.name.endswith(_KINDS):
            raise UserError("data.documents_files", str(file), f"must end in {', '.join(_KINDS)}")
        if not file.is_file():
            raise UserError("data.documents_files", str(file), "no such file")
        if file in files[:place]:
            raise UserError("data.documents_files", str(file), "is named twice")


def read_corpus(files: Sequence[Path]) -> Iterator[Document]:
    """Yield all documents; an id is the file's place in the list, its name, and the line or row, both from 1.

    Other fields than "text" are ignored. Raises UserError, with file and line, for a row without text or not text.
    """
    for place, file in enumerate(files, start=1):
        for number, where, text in _texts(file):
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{where}: text", repr(text)[:60], "must be a string that is not empty")
            if not is_unicode(text):
                raise UserError(f"{where}: text", text[:60], "holds half of a surrogate pair, which is no text")
            yield Document(f"{place}-{file.name}:{number}", text)


def _texts(file: Path) -> Iterator[tuple[int, str, object]]:
    """Number, where it stands, and what should be the text."""
    if file.suffix == ".txt":
        try:
            yield 1, str(file), file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(str(file), f"byte {error.start + 1}", "is not UTF-8") from None
    elif file.suffix == ".parquet":
        for number, text in enumerate(_column(file), start=1):
            yield number, f"{file}: row {number}", text
    else:
        for row in read_rows(file):
            if "text" not in row.fields:
                raise UserError(row.where, "no field 'text'", f"fields are {', '.join(row.fields) or 'none'}")
            yield int(row.where.rpartition(":")[2]), row.where, row.fields["text"]


def _column(file: Path) -> Iterator[object]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            if "text" not in table.schema_arrow.names:
                raise UserError(str(file), "no column 'text'", f"columns: {', '.join(table.schema_arrow.names)}")
            for batch in table.iter_batches(columns=["text"]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(str(file), " ".join(str(error).split())[:200], "must be a readable parquet file") from None
