"""Conversations to marked tokens: only answers are learned, reasoning of the last one survives, shards keep it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.data.chats import Chat, ChatRows, EncodedChat, encode_chat, write_chat_shards
from framework.data.templates import R1_CHAT_TEMPLATE, V3_CHAT_TEMPLATE, render_chat
from framework.data.tokenizer import EOS, TokenizerConfig, train_tokenizer
from framework.errors import UserError

TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 2?"},
    {"role": "assistant", "content": "<think>\none and two\n</think>\n\n3"},
    {"role": "user", "content": "And 3 + 4?"},
    {"role": "assistant", "content": "<think>\nthree and four\n</think>\n\n7"},
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    texts = [message["content"] for message in TURNS] * 3
    train_tokenizer(texts, TokenizerConfig(vocab_size=300), directory, 512, V3_CHAT_TEMPLATE)
    return AutoTokenizer.from_pretrained(directory)


def learned_text(tokenizer: Any, chat: EncodedChat) -> list[str]:
    """The runs of learned tokens as text."""
    starts = np.flatnonzero(np.diff(chat.learned, prepend=0) == 1)
    ends = np.flatnonzero(np.diff(chat.learned, append=0) == -1)
    return [tokenizer.decode(chat.token_ids[a : b + 1]) for a, b in zip(starts, ends, strict=True)]


def test_every_answer_and_its_end_is_learned(tokenizer: Any) -> None:
    chat = encode_chat(tokenizer, V3_CHAT_TEMPLATE, Chat("c", TURNS))
    assert learned_text(tokenizer, chat) == [TURNS[2]["content"] + EOS, TURNS[4]["content"] + EOS]
    whole = tokenizer(render_chat(V3_CHAT_TEMPLATE, TURNS, False), add_special_tokens=False)["input_ids"]
    assert chat.token_ids.tolist() == whole


def test_r1_learns_the_last_answer_with_its_reasoning(tokenizer: Any) -> None:
    chat = encode_chat(tokenizer, R1_CHAT_TEMPLATE, Chat("c", TURNS))
    assert learned_text(tokenizer, chat) == [TURNS[4]["content"] + EOS]
    assert "one and two" not in tokenizer.decode(chat.token_ids)
    # What is learned follows what the model will be given: the generation prompt ends inside the answer.
    prompt = render_chat(R1_CHAT_TEMPLATE, TURNS[:4], True)
    assert tokenizer.decode(chat.token_ids).startswith(prompt)


def test_shards_give_back_what_was_written_in_an_order_of_the_seed(tokenizer: Any, tmp_path: Path) -> None:
    chats = [encode_chat(tokenizer, V3_CHAT_TEMPLATE, Chat(str(i), (TURNS[1], {**TURNS[2], "content": "3" * i})))
             for i in range(1, 8)]  # fmt: skip
    meta = write_chat_shards(tmp_path, chats, vocab_size=300)
    assert (meta.chats, meta.tokens) == (7, sum(len(chat.token_ids) for chat in chats))
    rows = ChatRows(tmp_path, seed=1)
    ids, marks = rows.batch(0, 14)
    written = {(tuple(chat.token_ids), tuple(chat.learned)) for chat in chats}
    for epoch in (slice(0, 7), slice(7, 14)):
        assert {(tuple(i), tuple(m)) for i, m in zip(ids[epoch], marks[epoch], strict=True)} == written
    again, _ = ChatRows(tmp_path, seed=1).batch(5, 4)  # anywhere, without what came before
    assert all(np.array_equal(a, b) for a, b in zip(again, ids[5:9], strict=True))
    (tmp_path / "marks.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"shards|damaged"):
        ChatRows(tmp_path, seed=1)
