"""Files of every kind give the same rows; globs, folders, saved data sets and hub names find them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from framework.data import hub
from framework.data.layouts.columns import Columns
from framework.data.layouts.prompts import load_prompts
from framework.data.rows import file_rows
from framework.data.sources import find_source
from framework.data.text.pieces import cut, texts_of
from framework.errors import UserError
from tests.unprivileged import folder_of_nobody

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "二\n?", "answer": "3"}]


def lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def write(path: Path) -> Path:
    """Write ROWS as the file's ending says."""
    import pyarrow as pa
    from pyarrow import parquet

    kind = path.name.partition(".")[2]
    if kind in ("jsonl", "jsonl.gz", "jsonl.zst"):
        packed = {"jsonl": lines(), "jsonl.gz": gzip.compress(lines())}
        if kind.endswith("zst"):
            with pa.output_stream(str(path), compression="zstd") as file:
                file.write(lines())
        else:
            path.write_bytes(packed[kind])
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("csv", "tsv", "semi.csv"):
        with path.open("w", encoding="utf-8-sig", newline="") as text:
            writer = csv.writer(text, delimiter={"csv": ",", "tsv": "\t"}.get(kind, ";"))
            writer.writerows([list(ROWS[0]), *(list(row.values()) for row in ROWS)])
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, pa.Table.from_pylist(ROWS).schema) as stream:
            stream.write_table(pa.Table.from_pylist(ROWS))
    return path


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "tsv", "semi.csv", "parquet", "arrow"]
)
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    assert [dict(row.fields) for row in file_rows(write(tmp_path / f"a.{kind}"))] == ROWS


def test_json_lines_are_read_whatever_the_ending(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(lines())
    assert [(row.where, dict(row.fields)) for row in file_rows(tmp_path / "a.json")] == [
        (f"{tmp_path}/a.json:{number}", row) for number, row in enumerate(ROWS, start=1)
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"data": ROWS, "version": 1},
        {"a": ROWS[0], "b": ROWS[1]},
        {"problems": {"a": ROWS[0], "b": ROWS[1]}, "hints": {}},
    ],
)
def test_json_objects_that_hold_the_rows(content: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert [dict(row.fields) for row in file_rows(tmp_path / "a.json")] == ROWS


@pytest.mark.parametrize(
    "content",
    [
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        {name: {str(place): row[name] for place, row in enumerate(ROWS)} for name in ROWS[0]},
        {"columns": list(ROWS[0]), "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
        {"features": [{"name": "question"}], "data": ROWS},
    ],
)
def test_json_tables_of_columns(content: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert [dict(row.fields) for row in file_rows(tmp_path / "a.json")] == ROWS


def test_a_row_of_messages_is_no_table(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for content, rows in (
        ({"messages": said}, [{"messages": said}]),
        ({"chosen": said, "rejected": said[:1]}, [{"chosen": said, "rejected": said[:1]}]),
        ({"messages": [said, said[:1]]}, [{"messages": said}, {"messages": said[:1]}]),
        ({"problems": {"0": ROWS[0]}, "hints": {"0": {"x": 1}}}, [ROWS[0]]),
    ):
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert [dict(row.fields) for row in file_rows(tmp_path / "a.json")] == rows


@pytest.mark.parametrize(
    "text",
    [
        "sep=|\r\nquestion|answer\r\n1+1?|2\r\n",
        "question\tanswer\n1+1?\t2\n",
        '"question";" answer"\n"1+1?";2\n',
        'question, answer\n"1+1?", "2"\n',
    ],
)
def test_tables_of_text_as_spreadsheets_write_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, newline="")
    assert [dict(row.fields) for row in file_rows(tmp_path / "a.csv")] == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'{"q": ["1", "2"], "a": ["3"]}', "columns q of 2, a of 1'; a table's columns must have a value"),
        ("a.json", b'{"columns": ["q"], "data": [["1", "2"]]}', "row 1: got '2 values'; columns names 1"),
        ("a.json", b'{"train": [{"q": 1}], "test": [{"q": 2}]}', "got 'train, test'; holds several lists of objects"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid x\n", "a pointer of Git LFS"),
        ("a.csv", b"sep=;\nq;a\n1;2;3\n", "a.csv:3: got '3 values'"),
        ("a.jsonl.gz", b"no", "damaged gzip"),
        ("a.jsonl.zst", b"no", "damaged zst"),
        ("a.json", b"[1]", "row 1: got '1'; must be a JSON object"),
        ("a.json", b'"x"', "must be a list of JSON objects"),
        ("a.json", b"[{", "is not JSON"),
        ("a.json", b"[]", "an empty file"),
        ("a.csv", b"question,answer\n1,2,3\n", "a.csv:2: got '3 values'; the header names 2 columns"),
        ("a.csv", b"q,q\n1,2\n", "must name each column once"),
        ("a.csv", b"q,a\n1,\xff\n", "a.csv:2: got 'byte 7 of the file'; is not UTF-8"),
        ("a.csv", b"", "an empty file"),
        ("a.parquet", b"PAR1", "must be a readable parquet file"),
        ("a.arrow", b"ARROW", "as `datasets` saves it"),
    ],
)
def test_damage_is_one_line(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        list(file_rows(tmp_path / name))


def test_a_string_of_a_table_that_is_no_text_names_its_row(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    bad = pa.array([b"good", b"\xff\xfe"], pa.binary()).cast(pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row 2: text: got 'byte 1'; is not UTF-8"):
        read(tmp_path / "a.parquet")


def test_globs_and_folders(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.parquet"):
        write(tmp_path / name)
    (tmp_path / "README.md").write_text("no data")
    for name in (f"{tmp_path}/[ab].*", str(tmp_path)):
        assert [prompt.id for prompt in load_prompts(name)] == ["a.parquet:1", "a.parquet:2", "b.jsonl:1", "b.jsonl:2"]


def test_what_can_not_be_looked_into_is_named_and_not_left_out() -> None:
    with folder_of_nobody() as folder:
        write(folder / "a.jsonl")
        (folder / "open").mkdir()
        write(folder / "open" / "b.jsonl")
        hidden = folder / "hidden"
        hidden.mkdir()
        assert len(find_source(folder, "data.train").files) == 2
        hidden.chmod(0)
        for name in (folder, folder / "**" / "*.jsonl", folder / "*" / "*.jsonl"):
            with pytest.raises(
                UserError, match=r"hidden: got 'permission denied'; data\.train: folders must be readable"
            ):
                find_source(name, "data.train")
        assert len(find_source(folder / "open" / "*.jsonl", "data.train").files) == 1
        hidden.chmod(0o700)
        (folder / "gone.jsonl").symlink_to("/nowhere")
        for name in (folder, folder / "*.jsonl"):
            with pytest.raises(UserError, match=r"gone\.jsonl: got 'a link that leads nowhere or in a circle'"):
                find_source(name, "data.train")


def test_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    saved.save_to_disk(str(tmp_path / "set"))
    assert [prompt.answer for prompt in load_prompts(str(tmp_path / "set" / "train"))] == ["2", "3"]
    with pytest.raises(UserError, match="holds the splits train: name one"):
        load_prompts(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{tmp}/b.json", "did you mean 'b.jsonl'"),
        ("{tmp}/*.csv", "no such file"),
        ("{tmp}/empty", "a folder without data"),
        ("{tmp}/note.md", "must end in .jsonl"),
        ("data/train.jsonl", "data.train must be a file"),
    ],
)
def test_what_is_not_there(name: str, says: str, tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.md").write_text("x")
    with pytest.raises(UserError, match=says) as caught:
        find_source(name.replace("{tmp}", str(tmp_path)), "data.train")
    assert "data.train" in str(caught.value)


def read(path: Path, columns: Columns | None = None) -> list[str]:
    """The texts of all rows; raises what is wrong with the first that has none."""
    found = []
    for (piece,) in cut([("1", find_source(str(path), "data.documents").files)], 1):
        for text in texts_of(piece, columns or {}, "data.documents"):
            if isinstance(text, UserError):
                raise text
            found.append(text)
    return found


def test_documents_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfthree\n\nlines of it\n")
    (tmp_path / "b.jsonl").write_text('{"text": "\\ufeffone", "url": "x"}\n\n{"text": "two"}\n')
    assert read(tmp_path) == ["three\n\nlines of it\n", "one", "two"]
    (tmp_path / "c.jsonl").write_text('{"body": "x"}\n')
    assert read(tmp_path / "c.jsonl", {"text": "body"}) == ["x"]
    (tmp_path / "d.jsonl").write_text('{"txt": "x"}\n')
    for name, says in (("d.jsonl", r"d\.jsonl:1.*columns txt'; documents need"), ("e.txt", r"e\.txt: got 'byte 4'")):
        (tmp_path / "e.txt").write_bytes(b"abc\xff")
        with pytest.raises(UserError, match=says):
            read(tmp_path / name)


FILES = ["main/train-0.parquet", "main/test-0.parquet", "README.md"]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that answers with FILES; any file that is asked for is a.parquet."""
    import huggingface_hub

    asked: list[str] = []
    file = write(tmp_path / "a.parquet")
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: FILES)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name, **__: asked.append(name) or str(file))
    return asked


def test_a_data_set_of_the_hub(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load_prompts("openai/gsm8k")) == len(load_prompts("openai/gsm8k", split="test")) == 2
    assert len(load_prompts("openai/gsm8k/main/te*")) == 2
    assert served == ["main/train-0.parquet", "main/test-0.parquet", "main/test-0.parquet"]
    with pytest.raises(UserError, match="matches none of its files: main/test-0"):
        load_prompts("openai/gsm8k/x*")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: [*FILES, "other/train-0.parquet"])
    with pytest.raises(UserError, match=r"holds several: name one of openai/gsm8k/main/train\*, openai/gsm8k/other"):
        load_prompts("openai/gsm8k")


def test_a_link_to_the_hub_is_its_name(served: list[str]) -> None:
    from huggingface_hub import constants

    assert len(load_prompts(f"{constants.ENDPOINT}/datasets/openai/gsm8k/viewer/main")) == 2
    assert served == ["main/train-0.parquet"]
    assert hub.hub_id(f"{constants.ENDPOINT}/Qwen/Qwen3-0.6B/tree/main") == "Qwen/Qwen3-0.6B"


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"data\.train: got 'openai/none'; .*the hub cannot be reached") as caught:
        load_prompts("openai/none")
    assert "\n" not in str(caught.value)
