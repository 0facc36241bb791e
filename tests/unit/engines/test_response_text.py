from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.engines.response_text import TextStream, decode, hidden_token_ids
from tests.tokenizers import build

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
WORDS = ["<pad>", "<s>", "</s>", "hello", "5", *TAGS, "<|im_end|>", "<end_of_turn>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", additional_special_tokens=WORDS[5:]
    )


def test_tags_show_and_what_has_a_role_does_not(tokenizer: Any) -> None:
    shown = [word for index, word in enumerate(WORDS) if index not in hidden_token_ids(tokenizer)]
    assert shown == ["hello", "5", "<think>", "</think>", "<answer>", "</answer>", "<end_of_turn>"]


@pytest.mark.parametrize(
    ("words", "ended", "text"),
    [
        ("<think> hello </think> <answer> 5 </answer> </s>", True, "<think> hello </think> <answer> 5 </answer>"),
        ("<s> hello <|im_end|> <pad> 5", False, "hello 5"),
        ("hello <end_of_turn>", True, "hello"),  # spelt like a tag, but it is what ended the response
        ("hello <think>", False, "hello <think>"),
        ("", False, ""),
    ],
)
def test_text_of_a_response(tokenizer: Any, words: str, ended: bool, text: str) -> None:
    ids = [WORDS.index(word) for word in words.split()]
    (decoded,) = decode(tokenizer, hidden_token_ids(tokenizer), [ids], [ended])
    assert decoded == text
    stream = TextStream(tokenizer, hidden_token_ids(tokenizer))
    pieces = [stream.text([id_], ended and place == len(ids)) for place, id_ in enumerate(ids, 1)]
    assert "".join(pieces) == text


@pytest.mark.parametrize("kind", ["llama3", "mistral"])  # byte-level, and sentencepiece's bytes as a last resort
def test_characters_are_streamed_whole(kind: str, tmp_path: Path) -> None:
    tokenizer = build(kind, tmp_path)
    ids = tokenizer.encode("a é 汉 🙂", add_special_tokens=False)
    stream = TextStream(tokenizer, hidden_token_ids(tokenizer))
    pieces = [stream.text([id_], False) for id_ in ids[:-1]]  # the last byte of the smile is missing
    assert "".join(pieces) == "a é 汉 "
    assert len(ids) > len([piece for piece in pieces if piece]) > 1
