"""Sentences, sequences of them and what is hidden of those: nothing lost, nothing drawn twice alike."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.masking import Masking, Vocabulary, choose, mask
from framework.data.sentences import Sentences, split_sentences, stretches
from framework.data.sequences import SINGLE, CodedTexts, TextSequences
from framework.data.text.shard_files import Document
from framework.data.text_tokenizers import control_code, markers
from framework.data.word_order import word_order
from framework.errors import UserError
from tests.unit.table_text import DOCUMENTS, shards_of, tokenizer_of


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("wordpiece")
    tokenizer = tokenizer_of(directory / "tokenizer", "wordpiece")
    return tokenizer, shards_of(directory / "shards", tokenizer)


def test_text_is_cut_behind_sentences() -> None:
    assert split_sentences("One. Two?  Three!\nfour 1.5") == ["One.", "Two?", "Three!", "four 1.5"]
    assert split_sentences("你好。再见。") == ["你好。", "再见。"]
    assert split_sentences(" \n ") == []


def test_stretches_cover_every_sentence_once(wordpiece: tuple[Any, Path]) -> None:
    sentences = Sentences(wordpiece[1], "train")
    for across in (True, False):
        runs = list(stretches(sentences, 30, across))
        assert [n for _, first, last in runs for n in range(first, last + 1)] == list(range(len(sentences.lengths())))
        assert all(len(sentences.ids(first, last, closed=True)) <= 30 for _, first, last in runs)
        inside = [set(range(first, last + 1)) <= set(sentences.sentences_of(doc)) for doc, first, last in runs]
        assert all(inside) != across
    assert sentences.source(0) == "home"


@pytest.mark.parametrize("layout", ["next", "order"])
def test_pairs_follow_the_text_or_do_not(wordpiece: tuple[Any, Path], layout: Any) -> None:
    tokenizer, shards = wordpiece
    found = TextSequences(shards, "train", layout, 64, 3, markers(tokenizer))
    pairs = [found.at(place) for place in range(200)]
    labels = np.array([pair.label for pair in pairs])
    assert 0.35 < labels.mean() < 0.65
    for pair in pairs:
        assert pair.token_ids[0] == tokenizer.cls_token_id
        assert (pair.token_ids == tokenizer.sep_token_id).sum() == 2
        a, b = (tokenizer.decode(pair.token_ids[pair.type_ids == kind], skip_special_tokens=True) for kind in (0, 1))
        texts = [document.text.lower() for document in DOCUMENTS]
        joined = {0: f"{a} {b}", 1: f"{b} {a}"}
        if layout == "order" or not pair.label:
            assert any(joined[pair.label] in text for text in texts)
    again = TextSequences(shards, "train", layout, 64, 3, markers(tokenizer)).at(7)
    assert again.token_ids.tolist() == pairs[7].token_ids.tolist()
    assert all(one.seed != other.seed for one, other in pairwise(pairs))  # an epoch later the same text is new


def test_full_sequences_fill_their_rows(wordpiece: tuple[Any, Path]) -> None:
    tokenizer, shards = wordpiece
    found = TextSequences(shards, "train", "full", 64, 0, markers(tokenizer)).head(100)
    lengths = [len(sequence.token_ids) for sequence in found]
    assert max(lengths) <= 64
    assert np.mean(lengths[:-1]) > 50
    assert {sequence.label for sequence in found} == {SINGLE}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 4), st.integers(0, 2**32), st.floats(0.05, 1.0))
def test_as_many_tokens_are_predicted_as_the_length_says(length: int, longest: int, seed: int, rate: float) -> None:
    masking, vocabulary = Masking(rate=rate, longest=longest), Vocabulary(50, 4, (0, 1, 2, 3, 4))
    ids = np.concatenate([[2], np.arange(length) % 45 + 5, [3]]).astype(np.int32)
    seen, chosen = mask(ids, masking, vocabulary, np.random.default_rng(seed))
    assert chosen.sum() == masking.count(length)
    assert not chosen[[0, -1]].any()
    assert (seen[~chosen] == ids[~chosen]).all()
    assert set(seen[chosen]) <= {4, *range(5, 50)}


def test_masking_is_80_10_10_and_runs_have_alberts_lengths() -> None:
    rng, vocabulary = np.random.default_rng(0), Vocabulary(1000, 4, (0, 1, 2, 3, 4))
    ids = rng.integers(5, 1000, 20_000).astype(np.int32)
    seen, chosen = mask(ids, Masking(), vocabulary, rng)
    hidden, kept = (seen[chosen] == 4).mean(), (seen[chosen] == ids[chosen]).mean()
    assert hidden == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)
    runs = choose(np.ones(20_000, bool), 600, 3, rng)  # sparse: few runs touch
    edges = np.flatnonzero(np.diff(np.concatenate([[0], runs.view(np.int8), [0]])))
    counts = np.bincount(edges[1::2] - edges[::2], minlength=4)[1:4] / (len(edges) / 2)
    assert counts == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.08)  # (1/n) / (1 + 1/2 + 1/3)


def test_control_codes_come_first_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path / "tokenizer", "gpt2", codes=True)
    shards = shards_of(tmp_path / "shards", tokenizer)
    sea = tokenizer.convert_tokens_to_ids(control_code("sea"))
    found = CodedTexts(shards, "train", 64, 0, {"sea": sea})
    assert len(found) == len(DOCUMENTS) // 2
    for place in range(10):
        ids = found.at(place)
        assert ids[0] == sea
        assert ids[-1] == tokenizer.eos_token_id
        assert "stays at sea." in tokenizer.decode(ids)
    with pytest.raises(UserError, match="must be of a domain: moon"):
        CodedTexts(shards, "train", 64, 0, {"moon": 1})


def test_half_of_the_texts_have_two_words_swapped() -> None:
    found = word_order(DOCUMENTS, 20, seed=0)
    assert [each.label for each in found] == [0, 1] * 10
    for document, each in zip(DOCUMENTS, found, strict=False):
        assert sorted(each.text.split()) == sorted(document.text.split())
        assert (each.text == document.text) == (each.label == 0)
    assert word_order([Document("a", "too short")], 5, seed=0) == []
