"""A corpus in pieces: every line in one of them, bad rows counted and named, copies of documents by their ids."""

from __future__ import annotations

import gzip
import io
import json
import logging
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.artifacts import SHARDS, TextSet, read_listing
from framework.data.cleaning import CleanConfig
from framework.data.remote import remote_files
from framework.data.text.duplicates import id_halves, id_of
from framework.data.text.pieces import Piece, cut, texts_of
from framework.data.text.shard_files import Document, document_id, read_text, whole_file, write_text
from framework.errors import UserError
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import NoInputs
from framework.stages.documents import CollectDocuments, DocumentsConfig
from tests.beside import patch_beside
from tests.buckets import bucket
from tests.unit.stages.test_collect import runtime


def lines(file: Path, rows: list[str]) -> Path:
    file.write_text("".join(row + "\n" for row in rows))
    return file


@given(st.lists(st.text("ab ü\u2028", max_size=30), min_size=1, max_size=20), st.integers(1, 200))
def test_every_line_is_in_one_piece(tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int) -> None:
    file = lines(tmp_path_factory.mktemp("cut") / "a.jsonl", [json.dumps({"text": f"x{text}"}) for text in texts])
    pieces = [piece for shard in cut([("1", (file,))], size) for piece in shard]
    assert [text for piece in pieces for text in texts_of(piece, {}, "data.documents")] == [
        f"x{text}" for text in texts
    ]


def test_small_files_are_worked_on_together_and_large_ones_in_parts(tmp_path: Path) -> None:
    files = [
        lines(tmp_path / f"{name}.jsonl", ["x" * size]) for name, size in (("a", 9), ("b", 9), ("c", 99), ("d", 9))
    ]
    shards = cut([("1", files)], 50)
    assert [[(piece.file.name, piece.start, piece.end) for piece in shard] for shard in shards] == [
        [("a.jsonl", 0, None), ("b.jsonl", 0, None)],
        [("c.jsonl", 0, 50)],
        [("c.jsonl", 50, 100)],
        [("d.jsonl", 0, None)],
    ]


def test_a_bad_line_of_a_later_piece_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl", [json.dumps({"text": f"row {n}"}) for n in range(50)] + ["{broken", '{"url": 1}']
    )
    found = list(texts_of(Piece("1", file, 300, file.stat().st_size), {}, "data.documents"))
    errors = [str(error) for error in found if isinstance(error, UserError)]
    assert errors[0].startswith(f"{file}:51: got '{{broken'; is not JSON")
    assert errors[1].startswith(f"{file}:52: got 'columns url'; documents need a column text")


def collect(tmp_path: Path, rows: list[str], **config: int) -> TextSet:
    source = lines(tmp_path / "corpus.jsonl", rows)
    return CollectDocuments(DocumentsConfig(str(source), **config)).run(NoInputs(), runtime(tmp_path)).text


def test_few_rows_that_are_no_documents_are_counted_and_many_end_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [json.dumps({"text": f"row {place}"}) for place in range(300)]
    with caplog.at_level(logging.WARNING):
        text = collect(tmp_path, [*good[:100], "{broken", *good[100:]])
    assert read_listing(text.path)[1] == {"train": 270, "validation": 30, "dropped": 1, "dropped.not_a_document": 1}
    assert "1 of 301 rows are no documents and were left out; the first:" in caplog.text
    assert "corpus.jsonl:101" in caplog.text
    (tmp_path / "many").mkdir()
    with pytest.raises(UserError, match=r"corpus\.jsonl:3: got '{broken'"):
        collect(tmp_path / "many", [*good[:2], *["{broken"] * 5, *good])
    assert not (tmp_path / "many" / "out" / "text" / SHARDS).exists()


def test_documents_set_apart_are_the_same_in_any_order(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"row {place}"}) for place in range(100)]
    apart = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / name).mkdir()
        text = collect(tmp_path / name, order, validation_documents=7)
        apart.append({document.text for document in read_text(text.path, "validation")})
        train = [document.text for document in read_text(text.path, "train")]
        assert train == [json.loads(row)["text"] for row in order if json.loads(row)["text"] not in apart[-1]]
    assert apart[0] == apart[1]
    assert len(apart[0]) == 7


def test_a_document_that_a_rule_fails_on_is_counted_and_many_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        from framework.data.text import judge

        def poisoned(text):
            if "poison" in text:
                raise RecursionError("too deep")
            return text

        judge.scrub = poisoned
    """
    patch_beside(tmp_path / "patch", monkeypatch, code)
    documents = [Document(document_id("", f"d{n}"), f"d{n}") for n in range(199)]
    bad = [Document(document_id("", f"poison {n}"), f"poison {n}") for n in range(4)]
    config = CleanConfig(near_threshold=None, scrub=True)
    for count in (2, 4):
        directory = tmp_path / str(count)
        write_text(directory / "text", {"train": documents + bad[:count], "validation": documents[:1]})
        inputs = CleanInputs(TextSet(directory / "text"))
        if count == 4:
            with pytest.raises(UserError, match="4 of 204 documents on which a rule failed"):
                Clean(config).run(inputs, runtime(directory))
            continue
        text = Clean(CleanConfig(exact=False, near_threshold=None, scrub=True)).run(inputs, runtime(directory)).text
        assert read_listing(text.path)[1]["dropped.failed"] == 2
        samples = [json.loads(line) for line in (text.path / "dropped_samples.jsonl").open()]
        assert {row["of"] for row in samples} == {"RecursionError: too deep"}


def test_a_file_that_fails_in_the_middle_leaves_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("before")

    def fail() -> None:
        with whole_file(tmp_path / "a") as writer:
            writer.write(b"half")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert (tmp_path / "a").read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@given(st.text("ab é", max_size=40))
def test_ids_have_halves_that_sort_as_they_do(text: str) -> None:
    first, second = document_id("1", text), document_id("2", text)
    assert first != second
    assert id_of(*id_halves(first)) == first
    assert (id_halves(first) < id_halves(second)) == (first < second)


def test_files_of_a_bucket_are_read_as_those_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [json.dumps({"text": f"row {place}"}).encode() for place in range(30)]
    table = io.BytesIO()
    parquet.write_table(pa.table({"text": [f"row {place}" for place in range(20, 30)]}), table)
    objects = {
        "web/a.jsonl": b"\n".join(rows[:10]),
        "web/deep/b.jsonl.gz": gzip.compress(b"\n".join(rows[10:20])),
        "web/deep/c.parquet": table.getvalue(),
        "other/d.jsonl": b"not asked for",
    }
    with bucket("crawl", objects, monkeypatch):
        names = ("s3://crawl/web", "s3://crawl/web/**", "s3://crawl/web/deep/*.parquet")
        for number, name in enumerate((*names, "gs://crawl/web", "gs://crawl/web/deep/*.parquet")):
            text = CollectDocuments(DocumentsConfig(name)).run(NoInputs(), runtime(tmp_path / str(number))).text
            found = [document.text for split in ("train", "validation") for document in read_text(text.path, split)]
            assert sorted(found) == sorted(f"row {place}" for place in range(20 if "deep" in name else 0, 30))
        for name, says in (
            ("s3://crawl/web/d.jsonl", "no such file"),
            ("s3://secret/a", "(?i)access.?denied.*data.documents must be readable"),
            ("gs://secret/a", "you may not.*data.documents must be readable"),
            ("nothing://x", "nothing"),
        ):
            with pytest.raises(UserError, match=says):
                CollectDocuments(DocumentsConfig(name)).run(NoInputs(), runtime(tmp_path / "none"))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_that_ends_early_says_behind_which_row(ending: str, tmp_path: Path) -> None:
    import pyarrow as pa

    rng = random.Random(0)
    rows = b"".join(json.dumps({"text": rng.randbytes(200).hex()}).encode() + b"\n" for _ in range(2000))
    packed = gzip.compress(rows) if ending == "gz" else pa.compress(rows, codec="zstd", asbytes=True)
    file = tmp_path / f"a.jsonl.{ending}"
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{ending}: behind row [0-9]+: got .*is a damaged {ending}"):
        CollectDocuments(DocumentsConfig(str(file))).run(NoInputs(), runtime(tmp_path))
    assert not list((tmp_path / "out" / "text").iterdir())


def test_a_disk_that_is_full_in_the_middle_leaves_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        lines(
            tmp_path / f"{name}.jsonl", [json.dumps({"text": f"{name} {place} " + "x" * 900}) for place in range(1200)]
        )
    code = """
        import os
        from framework.data.text import shard_files

        def write(writer, content, ordinary=shard_files.ShardWriter.write):
            if b'"b 600 ' in content:
                raise OSError(28, os.strerror(28))
            ordinary(writer, content)

        shard_files.ShardWriter.write = write
    """
    patch_beside(tmp_path / "patch", monkeypatch, code)
    stage = CollectDocuments(DocumentsConfig(str(tmp_path / "*.jsonl"), shard_mb=1))
    with pytest.raises(OSError, match=r"No space left on device: .*read/train-0000[12]\.jsonl"):
        stage.run(NoInputs(), runtime(tmp_path))
    read = tmp_path / "work" / "read"
    assert (read / "done-00000.json").is_file()
    assert [file.name for file in read.iterdir() if file.name.startswith(".")] == []
    before = (read / "train-00000.jsonl").stat().st_mtime_ns
    monkeypatch.setattr("sys.path", [place for place in sys.path if place != str(tmp_path / "patch")])
    text = stage.run(NoInputs(), runtime(tmp_path)).text
    assert (read / "train-00000.jsonl").stat().st_mtime_ns == before
    assert len(list(read_text(text.path, "train"))) == 2400 - 64


def test_what_only_fsspec_opens_is_opened_by_it() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/folder/a.txt", b"some text")
    (file,) = remote_files("memory://folder/*.txt", "data.documents")
    assert (file.size(), file.open().read()) == (9, b"some text")
