"""Tokenizer and shards of a toy corpus; the prompts that only a trained tokenizer can show to be too long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.artifacts import PromptSet, TextSet
from framework.data.chat_template import ChatTemplate
from framework.data.readers import write_prompts
from framework.data.shards import TokenRows
from framework.data.text.shard_files import Document, write_text
from framework.data.text.token_steps import TokenizeConfig
from framework.data.tokenizer_training import (
    BOS,
    EOS,
    FIM_HOLE,
    SPECIAL_TOKENS,
    TokenizerConfig,
    least_tokens,
    pre_tokens,
)
from framework.errors import UserError
from framework.stages.tokenizer import Tokenize, TokenizeInputs, TokenizerInputs, TrainTokenizer
from framework.types import Prompt
from tests.unit.stages.test_collect import runtime

CONFIG = TokenizerConfig(vocab_size=300, digits_per_token=1)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> TokenizeInputs:
    """A text set and the tokenizer trained on it."""
    tmp = tmp_path_factory.mktemp("toy")
    documents = [Document(str(i), f"{i} plus {i}.") for i in range(20)]
    write_text(tmp / "text", {"train": documents, "validation": documents})
    (tmp / "out").mkdir()
    trained = TrainTokenizer(CONFIG, 64, 300).run(TokenizerInputs(TextSet(tmp / "text")), runtime(tmp))
    return TokenizeInputs(TextSet(tmp / "text"), trained.tokenizer)


def prompts(tmp: Path, *texts: str) -> PromptSet:
    rows = [Prompt(f"p{i}", text, "chain_sum", "1") for i, text in enumerate(texts)]
    for split in ("train", "heldout"):
        write_prompts(tmp / "prompts" / f"{split}.jsonl", rows)
    return PromptSet(tmp / "prompts")


def test_shards_hold_every_document(tokenized: TokenizeInputs, tmp_path: Path) -> None:
    shards = Tokenize().run(tokenized, runtime(tmp_path)).shards
    rows = TokenRows(shards.path, "train", 8, seed=0)
    assert rows.vocab_size <= 300
    assert rows.batch(0, 2).shape == (2, 9)  # the last position is a target only


def test_names_of_special_tokens_in_a_text_stay_text(tokenized: TokenizeInputs, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = f"an end {EOS} or {FIM_HOLE} in a web page"
    write_text(tmp_path / "text", {"train": [Document("a", text)], "validation": [Document("a", text)]})
    inputs = TokenizeInputs(TextSet(tmp_path / "text"), tokenized.tokenizer)
    shards = Tokenize().run(inputs, runtime(tmp_path)).shards
    tokenizer, ids = (
        AutoTokenizer.from_pretrained(tokenized.tokenizer.path),
        np.fromfile(shards.path / "train-00000.bin", "uint16"),
    )
    special = [int(token) for token in ids if token < len(SPECIAL_TOKENS)]
    assert special == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenizer.decode(ids[1:-1]) == text


def test_a_prompt_too_long_for_its_response_is_refused_before_pretraining(
    tokenized: TokenizeInputs, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenized.tokenizer.path)
    text = "xylophone" * 4  # one word for the pre-tokenizer, many tokens for the tokenizer
    size = len(ChatTemplate(tokenizer).prompt([{"role": "user", "content": text}]).token_ids)
    assert least_tokens(text, 1) == 1
    inputs = TokenizeInputs(tokenized.text, tokenized.tokenizer, prompts(tmp_path, "1 plus 2", text))
    Tokenize(context=size + 8, max_new_tokens=8).run(inputs, runtime(tmp_path / "fits"))
    with pytest.raises(UserError, match=f"prompt p1: tokens: got {size}; must be at most {size - 1}"):
        Tokenize(context=size + 7, max_new_tokens=8).run(inputs, runtime(tmp_path / "too_long"))
    assert not (tmp_path / "too_long" / "out" / "shards").exists()


@pytest.mark.parametrize("text", ["What is 12 + 345?", "  a\n\nb", "数学 と math_1", "", "é" * 30])
def test_least_tokens_is_a_lower_bound(tokenized: TokenizeInputs, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenized.tokenizer.path)
    assert least_tokens(text, CONFIG.digits_per_token) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_a_vocabulary_larger_than_the_models_is_refused() -> None:
    with pytest.raises(UserError, match=r"got 300; must be at most model\.vocab_size=299"):
        TrainTokenizer(CONFIG, 64, 299)


V3, V1 = TokenizerConfig().digits_per_token, 1  # digits


@pytest.mark.parametrize(
    ("digits", "text", "expected"),
    [
        (V3, "in 1234567 + 12", ["in", " ", "123", "456", "7", " +", " ", "12"]),
        (V1, "in 1234 + 12", ["in", " ", "1", "2", "3", "4", " +", " ", "1", "2"]),
        (V3, "3.14159 x²", ["3", ".", "141", "59", " x", "²"]),
        (V1, "3.14", ["3", ".", "1", "4"]),
        (V3, "价格是42元とカタカナabc 龥", ["价格是", "42", "元とカタカナ", "abc", " ", "龥"]),
        (V3, "한국어 中文、日本", ["한국어", " ", "中文", "、", "日本"]),
        (V3, "Hello world  twice\tmore ", ["Hello", " world", " ", " twice", "\tmore", " "]),
        (V3, "don't I'm", ["don", "'t", " I", "'m"]),
        (V3, "f(x) = _name;", ["f", "(x", ")", " =", " _", "name", ";"]),
        (V3, "naïve cafe\u0301 Ünï", ["naïve", " cafe\u0301", " Ünï"]),
        (V3, "end.\n\nNext !?\r\n", ["end", ".\n\n", "Next", " !?\r\n"]),
        (V3, "a \n\n  b", ["a", " \n\n", " ", " b"]),
    ],
)
def test_text_is_cut_by_deepseeks_rules(digits: int, text: str, expected: list[str]) -> None:
    """Runs of up to three digits (V1: one), of CJK and kana, words with what leads them, punctuation with line ends."""
    assert pre_tokens(text, digits) == expected


def test_the_tokenizer_learns_from_the_whole_corpus(tmp_path: Path) -> None:
    """A corpus stands file by file: half the documents, drawn by the seed, hold words of its start and of its end."""
    texts = ["alpha alpha"] * 20 + ["omega omega"] * 20
    write_text(tmp_path / "text", {"train": [Document(str(i), text) for i, text in enumerate(texts)]})
    (tmp_path / "out").mkdir()
    stage = TrainTokenizer(TokenizerConfig(vocab_size=300, train_documents=20), 64, 300)
    vocabulary = stage.run(TokenizerInputs(TextSet(tmp_path / "text")), runtime(tmp_path)).tokenizer.path
    learned = (vocabulary / "tokenizer.json").read_text()
    assert "Ġalpha" in learned
    assert "Ġomega" in learned


def test_a_mixture_takes_each_source_as_often_as_it_is_told(tokenized: TokenizeInputs, tmp_path: Path) -> None:
    """Half of the first source, the second two and a half times, a third once; each pass behind the one before."""
    from transformers import AutoTokenizer

    sources = {"1": 400, "2": 40, "3": 30}
    documents = [Document(f"{s}-{n}", f"{s} {n}", s) for s, size in sources.items() for n in range(size)]
    write_text(tmp_path / "text", {"train": documents, "validation": documents[:4]})
    inputs = TokenizeInputs(TextSet(tmp_path / "text"), tokenized.tokenizer)
    shards = Tokenize(TokenizeConfig(epochs=(0.5, 2.5))).run(inputs, runtime(tmp_path)).shards.path
    tokenizer = AutoTokenizer.from_pretrained(tokenized.tokenizer.path)
    passes = [
        [text for text in tokenizer.decode(np.fromfile(file, "uint16"), skip_special_tokens=False).split(EOS) if text]
        for file in sorted(shards.glob("train-*.bin"))
    ]
    found = [[text.removeprefix(BOS).split(" ")[0] for text in texts] for texts in passes]
    counts = [{source: texts.count(source) for source in sources} for texts in found]
    assert abs(counts[0]["1"] - 200) < 50
    assert counts[0] == {"1": counts[0]["1"], "2": 40, "3": 30}
    assert counts[1] == {"1": 0, "2": 40, "3": 0}
    assert counts[2] == {"1": 0, "2": counts[2]["2"], "3": 0}
    assert 8 < counts[2]["2"] < 32
    assert TokenRows(shards, "validation", 8, seed=0).n_rows >= 1
