"""A response's text as verifiers and people read it: control tokens go, tags stay even if they are special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from typing import Any

_TAG = re.compile(r"</?[A-Za-z][\w-]*>")  # <think>, </answer>; DeepSeek's and ChatML's control tokens have bars


def hidden_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that do not show in a text: special tokens, except tags without a role of their own such as `<think>`.

    A tokenizer's begin, end, pad and unknown tokens have such a role, even where they are spelt like tags.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
    roles = {getattr(tokenizer, name, None) for name in (*names, "mask_token_id")}
    special = {int(id_) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    tags = {id_ for id_ in special if _TAG.fullmatch(str(tokenizer.convert_ids_to_tokens(id_)))}
    return frozenset(special - (tags - roles))


def decode(
    tokenizer: Any, hidden: frozenset[int], responses: Sequence[Sequence[int]], ends: Sequence[bool]
) -> list[str]:
    """Return each response's text. Where `ends`, its last token ended it: if that is special, it is no text either."""
    special = set(tokenizer.all_special_ids) | hidden
    shown = [_shown(ids, ended, special, hidden) for ids, ended in zip(responses, ends, strict=True)]
    return list(tokenizer.batch_decode(shown, skip_special_tokens=False))


class TextStream:
    """One response's text piece by piece: the pieces together are what `decode` says of the whole.

    Characters that never become whole (a response cut off within one) are not streamed.
    """

    def __init__(self, tokenizer: Any, hidden: frozenset[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._hidden = tokenizer.backend_tokenizer, hidden
        self._special = set(tokenizer.all_special_ids) | hidden
        self._stream = DecodeStream(skip_special_tokens=False)

    def text(self, token_ids: Sequence[int], ended: bool) -> str:
        """Return what these next tokens add. Where `ended`, the last of them ended the response."""
        shown = _shown(token_ids, ended, self._special, self._hidden)
        return "".join(self._stream.step(self._tokenizer, id_) or "" for id_ in shown)


def _shown(token_ids: Sequence[int], ended: bool, special: Set[int], hidden: Set[int]) -> list[int]:
    last = token_ids[:-1] if ended and token_ids and token_ids[-1] in special else token_ids
    return [id_ for id_ in last if id_ not in hidden]
