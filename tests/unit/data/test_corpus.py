from __future__ import annotations

from pathlib import Path

import pytest

from framework.data.corpus import check_corpus, read_corpus
from framework.data.readers import Document
from framework.errors import UserError


def test_every_kind_of_file(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    files = [tmp_path / name for name in ("a.jsonl", "b.txt", "c.parquet")]
    files[0].write_text('{"text": "one", "url": "x"}\n\n{"text": "two"}\n')
    files[1].write_text("three\n\nlines of it\n")
    parquet.write_table(pa.table({"url": ["x", "y"], "text": ["four", "five"]}), files[2])
    check_corpus(files)
    assert list(read_corpus(files)) == [
        Document("1-a.jsonl:1", "one"),
        Document("1-a.jsonl:3", "two"),
        Document("2-b.txt:1", "three\n\nlines of it\n"),
        Document("3-c.parquet:1", "four"),
        Document("3-c.parquet:2", "five"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "a.jsonl:2: got \"no field 'text'\"; fields are txt"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 7}\n', "a.jsonl:2: text: got '7'; must be a string"),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl:1: text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: text.*surrogate"),
        ("a.jsonl", b'{"text": "x"}\n{"te', "a.jsonl:2: .*is not JSON"),
        ("a.txt", b"abc\xff", "a.txt: got 'byte 4'; is not UTF-8"),
        ("a.parquet", b"PAR1", "a.parquet: .*must be a readable parquet file"),
    ],
)
def test_every_fault_names_its_file_and_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        list(read_corpus([tmp_path / name]))
    assert len(str(caught.value).splitlines()) == 1


def test_a_parquet_file_without_text_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for table, says in (({"body": ["x"]}, "no column 'text'\"; columns: body"), ({"text": ["x", None]}, "row 2: text")):
        parquet.write_table(pa.table(table), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=says):
            list(read_corpus([tmp_path / "a.parquet"]))


def test_files_are_checked_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="no such file"):
        check_corpus([tmp_path / "b.txt"])
    with pytest.raises(UserError, match="must end in"):
        check_corpus([tmp_path / "a.csv"])
    with pytest.raises(UserError, match="named twice"):
        check_corpus([tmp_path / "a.txt", tmp_path / "a.txt"])
