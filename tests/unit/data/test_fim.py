from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.fim import combined_tokens, fill_in_the_middle, split_combined
from framework.data.tokenizer import FIM_BEGIN, FIM_END, FIM_HOLE, TokenizerConfig, train_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def reassembled(text: str) -> str:
    begin, text = text[: len(FIM_BEGIN)], text[len(FIM_BEGIN) :]
    assert begin == FIM_BEGIN
    prefix, rest = text.split(FIM_HOLE)
    suffix, middle = rest.split(FIM_END)
    assert middle
    return prefix + middle + suffix


@given(TEXT, st.text())
def test_a_rearranged_document_reassembles(text: str, key: str) -> None:
    found = fill_in_the_middle(text, 1.0, key)
    assert reassembled(found) == text
    assert found == fill_in_the_middle(text, 1.0, key)
    assert fill_in_the_middle(text, 0.0, key) == text


def test_the_rate_is_kept_and_every_cut_occurs() -> None:
    found = [fill_in_the_middle("añ💡d", 0.1, f"0 doc-{i}") for i in range(5000)]
    changed = [text for text in found if text != "añ💡d"]
    assert 430 < len(changed) < 570  # 500 ± 3.3 standard deviations
    assert len(set(changed)) == 10  # two different cuts of five places
    assert changed != [text for i in range(5000) if (text := fill_in_the_middle("añ💡d", 0.1, f"1 {i}")) != "añ💡d"]


def test_a_text_that_holds_a_mark_stays() -> None:
    text = f"V3 writes {FIM_HOLE} there"
    assert fill_in_the_middle(text, 1.0, "a") == text


def test_the_marks_are_v3s() -> None:
    names = [mark.translate({0xFF5C: "|", 0x2581: "_"}) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)]
    assert names == ["<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"]
    assert not set(FIM_BEGIN + FIM_HOLE + FIM_END) & set("|_")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(vocab_size=300, digits_per_token=1)
    train_tokenizer(["So it is.\nWho?\n\nAll of us.\n"] * 20, config, directory, 64, "")
    return AutoTokenizer.from_pretrained(directory)


def test_marks_are_single_tokens_and_blanks_beside_them_stay(tokenizer: Any) -> None:
    text = f"{FIM_BEGIN}So {FIM_HOLE} us.\n{FIM_END} it is.\nAll of"
    ids = tokenizer(text)["input_ids"]
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)]
    assert [token for token in ids if token in marks] == marks
    assert tokenizer.decode(ids[1:]) == text


def test_combined_tokens_are_split_at_the_rate_and_the_text_stays(tokenizer: Any) -> None:
    halves = combined_tokens(tokenizer)
    parts = {tokenizer.decode([token]): tokenizer.batch_decode([[i] for i in ids]) for token, ids in halves.items()}
    assert parts == {".\n": [".", "\n"], "?\n": ["?", "\n"], "?\n\n": ["?", "\n", "\n"]}
    ids = tokenizer("So it is.\n" * 1000)["input_ids"]
    (combined,) = set(ids) & halves.keys()
    split = split_combined(ids, halves, 0.3, "a")
    assert 1000 - 345 < split.count(combined) < 1000 - 255  # 300 ± 3.1 standard deviations split
    assert tokenizer.decode(split) == tokenizer.decode(ids)
    assert split == split_combined(ids, halves, 0.3, "a")
    assert split_combined(ids, halves, 1.0, "a").count(combined) == 0
    assert split_combined(ids, halves, 0.0, "a") == ids
