from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.fim import combined_tokens, cut_for_fim, fim_ids, fim_marks, split_combined
from framework.data.tokenizer_training import FIM_BEGIN, FIM_END, FIM_HOLE, TokenizerConfig, train_tokenizer
from framework.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXT, st.text())
def test_a_rearranged_document_reassembles(text: str, key: str) -> None:
    prefix, suffix, middle = cut_for_fim(text, 1.0, key)
    assert prefix + middle + suffix == text
    assert middle
    assert (prefix, suffix, middle) == cut_for_fim(text, 1.0, key)
    assert cut_for_fim(text, 0.0, key) == (text,)


def test_the_rate_is_kept_and_every_cut_occurs() -> None:
    found = [cut_for_fim("añ💡d", 0.1, f"0 doc-{i}") for i in range(5000)]
    cut = [parts for parts in found if len(parts) == 3]
    assert 430 < len(cut) < 570  # 500 ± 3.3 standard deviations
    assert len(set(cut)) == 10  # two different cuts of five places
    assert found != [cut_for_fim("añ💡d", 0.1, f"1 doc-{i}") for i in range(5000)]


def test_marks_stand_before_their_parts() -> None:
    assert fim_ids([[1, 2], [3], [4, 5]], [7, 8, 9]) == [7, 1, 2, 8, 3, 9, 4, 5]
    assert fim_ids([[1, 2]], [7, 8, 9]) == [1, 2]


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


def test_the_trained_tokenizer_has_the_marks_and_another_is_refused(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(fim_marks(tokenizer.get_vocab())) == [FIM_BEGIN, FIM_HOLE, FIM_END]
    with pytest.raises(UserError, match=r"fim_rate: got 'a tokenizer without <.fim.begin.>'"):
        fim_marks({"a": 0})


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
