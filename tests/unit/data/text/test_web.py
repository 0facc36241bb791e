"""A small WARC with what the web has: broken encodings, boilerplate, two languages, copies; collected and cleaned."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from framework.artifacts import SHARDS, read_json
from framework.data.cleaning import CleanConfig
from framework.data.text.shard_files import read_text
from framework.data.text.warc import warc_rows
from framework.errors import UserError
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import NoInputs
from framework.stages.documents import CollectDocuments, DocumentsConfig
from tests.unit.stages.test_collect import runtime

ENGLISH = (
    "The old harbour of the town was built by people who came from the north, and {0} of them stayed for the winter. "
    "They wrote to {1}@mail.example.org about the weather and the price of fish. That is how we know about them."
)
GERMAN = "Der alte Hafen der Stadt wurde von Menschen aus dem Norden gebaut, und viele blieben über den Winter dort."
NAMES = (
    "seven",
    "twelve",
    "ninety",
    "forty",
    "eleven",
    "thirty",
    "sixty",
    "twenty",
    "eighty",
    "fifty",
    "nineteen",
    "six",
)


def page(body: str) -> str:
    menu = "".join(f'<li><a href="/{place}">Link {place}</a></li>' for place in range(9))
    return f"<html><body><nav><ul>{menu}</ul></nav><main><h1>A</h1><p>{body}</p></main><footer>©</footer></body></html>"


def record(number: int, content: bytes, kind: str = "text/html; charset=utf-8") -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/{number}\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012d}>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def warc(directory: Path) -> Path:
    bodies = [page(ENGLISH.format(name, name)).encode() for name in NAMES]
    records = [record(number, body) for number, body in enumerate(bodies)]
    records += [
        record(20, bodies[0]),  # a copy
        record(21, page(GERMAN).encode("latin-1"), "text/html"),  # says nothing of its encoding
        record(22, page(GERMAN + " Das war gut.").encode("latin-1")),  # says the wrong one
        record(23, b"<html><body></body></html>"),
        record(24, b"%PDF-1.4", "application/pdf"),
    ]
    file = directory / "crawl.warc.gz"
    file.write_bytes(b"".join(map(gzip.compress, records)))
    return file


def test_pages_are_decoded_and_lose_their_menus(tmp_path: Path) -> None:
    rows = {row.fields["url"].rpartition("/")[2]: row.fields["text"] for row in warc_rows(warc(tmp_path))}
    assert rows["0"].splitlines()[-1] == ENGLISH.format("seven", "seven")
    assert "Link" not in "".join(rows.values())
    assert GERMAN in rows["21"]
    assert rows["23"].strip() == ""
    assert "24" not in rows


def test_a_crawl_is_cleaned_and_every_page_accounted_for(tmp_path: Path) -> None:
    config = DocumentsConfig(str(warc(tmp_path)), validation_documents=1)
    text = CollectDocuments(config).run(NoInputs(), runtime(tmp_path / "collect")).text
    counts = read_json(text.path / SHARDS)["counts"]
    assert counts == {"train": 14, "validation": 1, "dropped": 1, "dropped.no_text": 1}
    clean = CleanConfig(languages=("en",), c4=True, fineweb=True, scrub=True, near_threshold=0.95)
    cleaned = Clean(clean).run(CleanInputs(text), runtime(tmp_path / "clean")).text
    listing = read_json(cleaned.path / SHARDS)
    assert listing["counts"] == {
        "train": 11, "validation": 1, "dropped": 3, "dropped.language": 2, "dropped.exact_duplicate": 1,
    }  # fmt: skip
    assert listing["shown"]["language en"] == 13
    assert listing["shown"]["language de"] == 2
    kept = " ".join(document.text for split in ("train", "validation") for document in read_text(cleaned.path, split))
    assert "mail.example.org" not in kept
    assert kept.count("email@example.com") == 12
    samples = [json.loads(line) for line in (cleaned.path / "dropped_samples.jsonl").open()]
    assert sorted(row["reason"] for row in samples) == ["exact_duplicate", "language", "language"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.warc.gz", None, "cut.warc.gz: got 'Compressed file ended"),
        ("not.warc", b"no archive\n" * 50, "not.warc: row 1: got .*must be a record of a WARC file"),
    ],
)
def test_a_damaged_archive_is_named(name: str, content: bytes | None, says: str, tmp_path: Path) -> None:
    whole = warc(tmp_path).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=says):
        list(warc_rows(tmp_path / name))
