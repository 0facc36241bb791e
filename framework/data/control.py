"""Control tokens: those of a template are tokens, the same words inside a content are text.

"What does <|im_end|> mean?" must not end a turn. Contents go through the template with each control token's name
masked by one private-use character, so what the rendered text still names is the template's. It is then encoded by a
tokenizer whose control tokens have other names: the template's are renamed, the contents' masks are undone, and both
are cut by the same rules as ever.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

_BRACKETS = re.compile(r"<[|｜].+[|｜]>")  # DeepSeek's role tokens are not marked as special
# Tags in which models think, answer and call, where an assistant says them: tokens of some tokenizers, special in few.
_SPEECH = re.compile(r"</?(think|thinking|thought|reasoning|answer|solution|tool_call|tool_response)>")
_MASKS, _NAMES = 0xF0000, 0x100000  # planes of private use: no text means anything by them
_SECRET = secrets.token_hex(8)  # a text that does hold such a character still cannot write a token's other name


@dataclass(frozen=True)
class ControlTokens:
    """The control tokens of one tokenizer, and how texts that name them are encoded."""

    tokenizer: Any = field(repr=False)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Name -> id."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {token.content: id for id, token in added if token.special or _BRACKETS.fullmatch(token.content)}

    def mask(self, value: Any, spoken: bool = False) -> Any:
        """Return `value` with control tokens' names masked in every string of it; `spoken`: an assistant's words."""
        if isinstance(value, str):
            names = self._speech_excepted if spoken else self._pattern
            return names.sub(lambda match: self._mask_of[match[0]], value) if names is not None else value
        if isinstance(value, Mapping):
            return {key: self.mask(item, spoken) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mask(item, spoken) for item in value]
        return value

    def unmask(self, text: str) -> str:
        """Return a masked text as it was."""
        return "".join(self._masked.get(character, character) for character in text)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a masked text: names in it are control tokens, masks are text."""
        if self._masked.keys().isdisjoint(text) and not self._respelt:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self._renamed.encode(self.unmask(self._rename(text)), add_special_tokens=False).ids)

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts in which no name stands for a control token."""
        return [encoding.ids for encoding in self._renamed.encode_batch(list(texts), add_special_tokens=False)]

    def _rename(self, text: str) -> str:
        return self._pattern.sub(lambda match: _name(self._place[match[0]]), text) if self._pattern else text

    @cached_property
    def _respelt(self) -> bool:
        """Whether the tokenizer finds names in texts that it first lowers or composes: <|END|> may be <|end|>."""
        added = self.tokenizer.added_tokens_decoder
        return self.tokenizer.backend_tokenizer.normalizer is not None and any(
            added[id].normalized for id in self.ids.values()
        )

    @cached_property
    def _place(self) -> Mapping[str, int]:
        return {name: place for place, name in enumerate(self.ids)}

    @cached_property
    def _mask_of(self) -> Mapping[str, str]:
        return {name: chr(_MASKS + place) for name, place in self._place.items()}

    @cached_property
    def _masked(self) -> Mapping[str, str]:
        return {mask: name for name, mask in self._mask_of.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return _any_of(self.ids)

    @cached_property
    def _speech_excepted(self) -> re.Pattern[str] | None:
        return _any_of(name for name in self.ids if not _SPEECH.fullmatch(name))

    @cached_property
    def _renamed(self) -> Any:
        """The tokenizer with every control token under a name that no text holds; ids stay."""
        from tokenizers import Tokenizer

        data = json.loads(self.tokenizer.backend_tokenizer.to_str())
        new = {name: _name(place) for name, place in self._place.items()}
        for token in data["added_tokens"]:
            token["content"] = new.get(token["content"], token["content"])
        model = data["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {new.get(name, name): id for name, id in vocabulary.items()}
        else:  # unigram
            model["vocab"] = [[new.get(name, name), score] for name, score in vocabulary]
        if model.get("unk_token") in new:
            model["unk_token"] = new[model["unk_token"]]
        data["truncation"] = data["padding"] = None
        return Tokenizer.from_str(json.dumps(data))


def _name(place: int) -> str:
    return f"{chr(_NAMES + place)}{_SECRET}{chr(_NAMES + place)}"


def _any_of(names: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
