"""What V3 does to the text of a document when it is tokenized: fill-in-the-middle, and cuts in combined tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from framework.data.tokenizer_training import FIM_BEGIN, FIM_END, FIM_HOLE
from framework.errors import UserError

_COMBINED = re.compile(r"( ?[^\w\s\ufffd]+)([\r\n]+)")  # \ufffd: a token that ends within a character


class Decoder(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def __len__(self) -> int: ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the tokens of a text."""
        ...


def cut_for_fim(text: str, rate: float, key: str) -> tuple[str, ...]:
    """Return prefix, suffix and middle of a share `rate` of texts (DeepSeek-V3 section 4.1, PSM), of others the text.

    `key` alone decides which texts and where they are cut: between code points, the middle not empty.
    """
    rng = random.Random(f"fim {key}")
    if not text or rng.random() >= rate:
        return (text,)
    start, end = sorted(rng.sample(range(len(text) + 1), 2))
    return text[:start], text[end:], text[start:end]


def fim_ids(parts: Sequence[Sequence[int]], marks: Sequence[int]) -> list[int]:
    """Join the tokens of what `cut_for_fim` returned, the three marks before the three parts, none before a whole."""
    if len(parts) == 1:
        return list(parts[0])
    return [token for mark, part in zip(marks, parts, strict=True) for token in (mark, *part)]


def fim_marks(vocabulary: Mapping[str, int]) -> list[int]:
    """Return the ids of the marks, in the order of their parts; raises UserError if the tokenizer lacks one."""
    for mark in (FIM_BEGIN, FIM_HOLE, FIM_END):
        if mark not in vocabulary:
            raise UserError("stage.tokenize.fim_rate", f"a tokenizer without {mark}", "must be 0 with this tokenizer")
    return [vocabulary[mark] for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)]


def combined_tokens(tokenizer: Decoder) -> dict[int, list[int]]:
    """Return token -> the tokens of its halves, for those of punctuation followed by line breaks (".\\n")."""
    found = {}
    for token in range(len(tokenizer)):
        if match := _COMBINED.fullmatch(tokenizer.decode([token])):
            found[token] = [i for half in match.groups() for i in tokenizer.encode(half, add_special_tokens=False)]
    return found


def split_combined(ids: Sequence[int], halves: Mapping[int, Sequence[int]], rate: float, key: str) -> list[int]:
    """Return `ids` with a share `rate` of the tokens in `halves` replaced by theirs (DeepSeek-V3 section 4.1).

    So a prompt that ends in punctuation without a line break is no rare case for the model (token boundary bias).
    `key` alone decides which.
    """
    if not rate or halves.keys().isdisjoint(ids):
        return list(ids)
    rng = random.Random(f"split {key}")
    result: list[int] = []
    for token in ids:
        result += halves[token] if token in halves and rng.random() < rate else [token]
    return result
