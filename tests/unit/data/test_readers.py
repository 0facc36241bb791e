from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.readers import (
    read_prompts,
    read_rows,
    write_prompts,
    write_rows,
)
from framework.errors import UserError
from framework.types import Prompt

LINE = {"id": "a", "text": "1+1?", "answer": "2", "task": "math"}


def prompt_file(directory: Path, *lines: object) -> Path:
    path = directory / "prompts.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_prompts_survive_a_round_trip(tmp_path: Path) -> None:
    prompts = (
        Prompt("a", "1+1?", "math", "2"),
        Prompt("b", "zwei\n二 \u2028", "chain_sum", "-1", ("accuracy",), (1, 2), '{"metadata": {}}'),
        Prompt(
            "c", "x", "t", "1", messages=({"role": "user", "content": "x"},), columns={"level": 5}, opened="<think>"
        ),
    )
    path = tmp_path / "new" / "prompts.jsonl"
    assert write_prompts(path, prompts) == 3
    assert read_prompts(path) == prompts
    assert [file.name for file in path.parent.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("lines", "where", "says"),
    [
        ([], "", "needs at least one line"),
        (["", "  "], "", "needs at least one line"),
        ([LINE, '{"id": "b"'], ":2", "is not JSON: Expecting ',' delimiter at column 11"),
        (["[1, 2]"], ":1", "must be a JSON object"),
        (["[" * 100_000], ":1", "nested too deeply"),
        ([LINE, {"id": "b", "text": "q", "task": "t"}], ":2", "no field 'answer'"),
        ([{"id": "b", "answer": "q", "task": "t"}], ":1", "no field 'text'"),
        ([{**LINE, "anwser": "2"}], ":1", "'anwser'; did you mean 'answer'?"),
        ([{**LINE, "prompt": "both"}], ":1", "'prompt'"),
        (['{"id": ' + "7" * 5000 + "}"], ":1", "thousands of digits"),
        ([{**LINE, "columns": {"deep": ["\ud800"]}}], ":1: columns", "surrogate"),
        ([{**LINE, "answer": 2}], ":1: answer", "got 2; must be a string"),
        ([{**LINE, "id": None}], ":1: id", "must be a string"),
        ([{**LINE, "id": " "}], ":1: id", "must not be empty"),
        ([{**LINE, "text": ""}], ":1: text", "must not be empty"),
        ([{**LINE, "rewards": "format"}], ":1: rewards", "must be a list of strings"),
        ([{**LINE, "token_ids": [1, -2]}], ":1: token_ids", "must be a list of token ids"),
        ([{**LINE, "token_ids": [0.5] * 10_000}], ":1: token_ids", "must be a list of token ids"),
        ([{**LINE, "text": "\ud800"}], ":1: text", "surrogate"),
        ([LINE, {**LINE, "id": "b"}, LINE], ":3: id", "must be unique; first used at"),
    ],
)
def test_every_fault_names_its_line(tmp_path: Path, lines: list[object], where: str, says: str) -> None:
    path = prompt_file(tmp_path, *lines)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert caught.value.where == f"{path}{where}"
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(path)) + 300


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl:2: .*is not UTF-8 \(byte 9"):
        read_prompts(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LINE).encode())
    assert read_prompts(path)[0].id == "a"


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path) -> None:
    prompt_file(tmp_path, LINE)
    with pytest.raises(UserError, match=r"no such file.*did you mean 'prompts.jsonl'"):
        read_prompts(tmp_path / "prompt.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_prompts(tmp_path / "nowhere" / "prompts.jsonl")
    with pytest.raises(UserError, match="must be a readable"):
        read_prompts(tmp_path)


def test_gzip_is_read_and_its_damage_reported(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl.gz"
    packed = gzip.compress((json.dumps(LINE) + "\n").encode() * 100)
    path.write_bytes(gzip.compress(json.dumps(LINE).encode()))
    assert read_prompts(path)[0].id == "a"
    for damaged in (packed[:-20], b"plain text", packed[:20] + b"\0" * 20 + packed[40:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged gzip"):
            list(read_rows(path))


def test_a_place_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="must be a place that can be written"):
        write_rows(tmp_path / "file" / "prompts.jsonl", [LINE])


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, LINE)

    def rows_until_full() -> Iterator[dict[str, str]]:
        yield LINE
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write_rows(path, rows_until_full())
    assert len(read_prompts(path)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["prompts.jsonl"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    write_rows(path, ({"text": text} for text in texts))
    assert [row.fields["text"] for row in read_rows(path)] == texts
