"""The arithmetic that `make own` trains on: right answers, nothing on both sides."""

from __future__ import annotations

from pathlib import Path

from framework.data.splits import load_splits
from jobs.own.prepare import HELDOUT, SIZES, TRAIN, write_prompts


def test_answers_are_right_and_no_question_is_on_both_sides(tmp_path: Path) -> None:
    write_prompts(tmp_path)
    train, heldout = load_splits(str(tmp_path / TRAIN), str(tmp_path / HELDOUT))  # which checks that they are disjoint
    assert (len(train), len(heldout)) == (SIZES[TRAIN], SIZES[HELDOUT])
    for prompt in (*train, *heldout):
        assert int(prompt.answer) == eval(prompt.text.removeprefix("What is ").removesuffix("?"))
