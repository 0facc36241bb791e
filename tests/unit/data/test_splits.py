"""One file shared out by the hash of its texts; no question on both sides, whatever its case and blanks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.data.splits import check_disjoint, load_splits, share_out
from framework.errors import UserError
from framework.types import Prompt


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text, "answer": "1"}) + "\n" for text in texts))
    return str(path)


def test_a_share_by_hash_of_the_text(tmp_path: Path) -> None:
    texts = [f"question {i}" for i in range(400)]
    train, heldout = load_splits(write(tmp_path / "a.jsonl", texts), heldout_share=0.25)
    assert 60 < len(heldout) < 140
    assert {p.text for p in train} | {p.text for p in heldout} == set(texts)
    again, _ = load_splits(write(tmp_path / "b.jsonl", [*texts[::-1], "Question  7 "]), heldout_share=0.25)
    twins = {p.text for p in again} & {"question 7", "Question  7 "}
    assert len(twins) in (0, 2)  # equal questions stay together
    assert {p.text for p in again} - twins == {p.text for p in train} - twins


def test_two_files_and_one_to_evaluate(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", ["x"]), write(tmp_path / "b.jsonl", ["y"])
    train, heldout = load_splits(one, two)
    assert ([p.text for p in train], [p.text for p in heldout]) == (["x"], ["y"])
    assert load_splits(None, two) == ((), heldout)
    with pytest.raises(UserError, match=r"data\.heldout_share: got 0\.1; leaves .* out of 1: name data\.heldout"):
        load_splits(one)
    with pytest.raises(UserError, match=r"data\.train"):
        load_splits(None)
    with pytest.raises(UserError, match="between 0 and 1"):
        load_splits(one, heldout_share=1)


@pytest.mark.parametrize("twin", ["What is 1 + 2?", "what IS 1 + 2? ", "What\u00a0is\n1 + 2?", "Ｗhat is １ + 2?"])
def test_equal_but_for_case_and_blanks_is_equal(twin: str) -> None:
    with pytest.raises(UserError, match="also in the train prompts"):
        check_disjoint([Prompt("a", "What is 1 + 2?", "t", "3")], [Prompt("b", twin, "t", "3")])
    check_disjoint([Prompt("a", "What is 1 + 2?", "t", "3")], [Prompt("b", "What is 12?", "t", "3")])


def test_sides_do_not_depend_on_order() -> None:
    prompts = [Prompt(str(i), f"q{i}", "t", "1") for i in range(50)]
    train, heldout = share_out(prompts, 0.3)
    assert share_out(prompts[::-1], 0.3) == (train[::-1], heldout[::-1])
