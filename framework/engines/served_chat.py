"""How vLLM's server reads messages: control tokens that a user writes stay text, as in training and in `chat`.

Its renderers are what it lets others add (`RENDERER_REGISTRY`); `--tokenizer-mode` chooses one. Imported by vLLM alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm.renderers.hf import HfRenderer

from framework.data.control import ControlTokens


class TextRenderer(HfRenderer):  # type: ignore[misc]  # vLLM's classes are untyped here
    """vLLM's own rendering of messages whose control tokens are masked; the rendered text is tokenized by us."""

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.get_tokenizer())

    def render_messages(self, messages: list[Any], params: Any) -> tuple[list[Any], Any]:
        """Return the messages and the prompt's tokens."""
        return self._as_tokens(*super().render_messages(self._masked(messages), self._tools_masked(params)))

    async def render_messages_async(self, messages: list[Any], params: Any) -> tuple[list[Any], Any]:
        """Do the same, rendering in a thread."""
        found = await super().render_messages_async(self._masked(messages), self._tools_masked(params))
        return self._as_tokens(*found)

    def _masked(self, messages: list[Any]) -> list[Any]:
        said = [(message, message.get("role")) for message in messages]
        return [{**self._control.mask(message, spoken=role == "assistant"), "role": role} for message, role in said]

    def _tools_masked(self, params: Any) -> Any:
        kwargs = params.chat_template_kwargs
        return replace(params, chat_template_kwargs={**kwargs, "tools": self._control.mask(kwargs.get("tools"))})

    def _as_tokens(self, conversation: list[Any], prompt: Any) -> tuple[list[Any], Any]:
        text = prompt.pop("prompt")
        return self._unmasked(conversation), {**prompt, "prompt_token_ids": self._control.encode(text)}

    def _unmasked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._control.unmask(value)
        if isinstance(value, Mapping):
            return {key: self._unmasked(item) for key, item in value.items()}
        return [self._unmasked(item) for item in value] if isinstance(value, list) else value
