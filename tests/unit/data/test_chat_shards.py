"""Conversations in shards: what was written comes back in an order of the seed, ids of any size whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from framework.data.chat_shards import ChatRows, EncodedChat, write_chat_shards
from framework.data.shards import TokenRows, write_shards
from framework.errors import UserError


def test_shards_give_back_what_was_written_in_an_order_of_the_seed(tmp_path: Path) -> None:
    chats = [EncodedChat(np.arange(i + 3, dtype=np.int32), np.arange(i + 3, dtype=np.int32) % 2) for i in range(1, 8)]
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


@pytest.mark.parametrize("largest", [299, 65_535, 65_536, 70_000, 200_000])
def test_ids_of_any_size_are_kept(largest: int, tmp_path: Path) -> None:
    ids = np.array([0, 1, largest], np.int32)
    write_chat_shards(tmp_path, [EncodedChat(ids, np.ones(3, np.int32))], vocab_size=largest + 1)
    assert ChatRows(tmp_path, seed=0).batch(0, 1)[0][0].tolist() == ids.tolist()
    write_shards(tmp_path, {"train": [ids.tolist()]}, vocab_size=largest + 1)
    assert TokenRows(tmp_path, "train", 2, seed=0).read(0).tolist() == ids.tolist()
    with pytest.raises(ValueError, match=f"{largest}, but the vocabulary has {largest}"):
        write_chat_shards(tmp_path, [EncodedChat(ids, np.ones(3, np.int32))], vocab_size=largest)
    with pytest.raises(ValueError, match=f"{largest}, but the vocabulary has {largest}"):
        write_shards(tmp_path, {"train": [ids.tolist()]}, vocab_size=largest)
