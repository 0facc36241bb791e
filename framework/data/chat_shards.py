"""Conversations as token ids with marks on what a model learns to say, in memory-mapped shards read whole and shuffled.

Dimensions: T tokens of one conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.data.readers import read_rows
from framework.data.shards import checked_ids, token_dtype
from framework.data.shuffle import shuffled
from framework.errors import UserError
from framework.types import Int32

META, TOKENS, MARKS, ENDS = "meta.json", "chats.bin", "marks.bin", "ends.npy"
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """One conversation of a ChatSet."""

    id: str
    messages: tuple[Message, ...]  # {"role", "content"} and further keys (`layouts.messages`), an assistant's last
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = ""  # file and line, for messages


@dataclass(frozen=True)
class EncodedChat:
    """What a trainer takes."""

    token_ids: Int32  # [T]
    learned: Int32  # [T], 1 on the tokens of an answer and its end


@dataclass(frozen=True)
class ChatShardsMeta:
    """What the shards hold."""

    chats: int
    tokens: int
    vocab_size: int


def read_chats(path: Path) -> Iterator[Chat]:
    """Yield a ChatSet's conversations; a user's own are for `data.layouts.chats`."""
    for row in read_rows(path):
        fields = dict(row.fields)
        yield Chat(fields["id"], tuple(fields["messages"]), tuple(fields["tools"]), fields["where"])


def write_chat_shards(directory: Path, chats: Iterable[EncodedChat], vocab_size: int) -> ChatShardsMeta:
    """Write conversations one after another, their marks beside them, and where each ends."""
    ends, dtype = [0], token_dtype(vocab_size)
    with (directory / TOKENS).open("wb") as tokens, (directory / MARKS).open("wb") as marks:
        for chat in chats:
            tokens.write(checked_ids(chat.token_ids, vocab_size).astype(dtype).tobytes())
            marks.write(chat.learned.astype(np.uint8).tobytes())
            ends.append(ends[-1] + len(chat.token_ids))
    np.save(directory / ENDS, np.asarray(ends, np.int64))
    meta = ChatShardsMeta(len(ends) - 1, ends[-1], vocab_size)
    (directory / META).write_text(json.dumps(asdict(meta)))
    return meta


class ChatRows:
    """Conversations of shards by place in an endless order: each epoch is shuffled anew by the seed alone."""

    def __init__(self, directory: Path, seed: int) -> None:
        try:
            self.meta = ChatShardsMeta(**json.loads((directory / META).read_text()))
            self._ends = np.load(directory / ENDS)
            dtype = token_dtype(self.meta.vocab_size)
            self._tokens, self._marks = (
                np.memmap(directory / TOKENS, dtype, "r"),
                np.memmap(directory / MARKS, np.uint8, "r"),
            )
        except (OSError, ValueError, TypeError) as error:
            raise UserError(str(directory), str(error), "must be chat shards as the framework writes them") from None
        if not len(self._tokens) == len(self._marks) == self._ends[-1] == self.meta.tokens or not self.meta.chats:
            raise UserError(
                str(directory), f"{len(self._tokens)} tokens", f"meta.json says {self.meta.tokens}: damaged"
            )
        self.seed = seed

    def batch(self, first: int, rows: int) -> tuple[list[Int32], list[Int32]]:
        """Return token ids and marks ([T] each) of the conversations at `first` to `first + rows`."""
        chosen = [self.row(shuffled(self.seed, place, self.meta.chats)) for place in range(first, first + rows)]
        return [row.token_ids for row in chosen], [row.learned for row in chosen]

    def row(self, chat: int) -> EncodedChat:
        """Return a conversation by its place in the files."""
        return EncodedChat(self._slice(self._tokens, chat), self._slice(self._marks, chat))

    def _slice(self, array: npt.NDArray[Any], chat: int) -> Int32:
        return np.asarray(array[self._ends[chat] : self._ends[chat + 1]], np.int32)
