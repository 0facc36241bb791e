"""Conversations as tokens, through the tokenizer's own chat template, one that is named, or a jinja file."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from framework.data.control import ControlTokens
from framework.data.layouts.messages import REASONING
from framework.data.templates import R1_CHAT_TEMPLATE, R1_ZERO_CHAT_TEMPLATE, V3_CHAT_TEMPLATE
from framework.errors import UserError, did_you_mean
from framework.types import Prompt

NAMED = {"r1_zero": R1_ZERO_CHAT_TEMPLATE, "r1": R1_CHAT_TEMPLATE, "v3": V3_CHAT_TEMPLATE}
_OPENED = re.compile(r"<(think|thinking|thought|reasoning|answer)>.*", re.DOTALL)
# Whether a template writes a call's arguments as JSON itself, or puts them between texts as they are.
_AS_JSON = re.compile(r"(?:arguments|function|tool_calls?)['\"]?\]?\s*\|\s*(?:tojson|items)")
_AS_TEXT = re.compile(r"arguments['\"]?\]?\s*(?:\+|~|-?\}\})")
_MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class TemplateConfig:
    """Which chat template turns conversations into text, and what it is told. Raises UserError for an unknown name."""

    name: str = ""  # "": the tokenizer's own; r1_zero, r1 or v3; or the path of a .jinja file
    system: str = ""  # the system message of conversations that have none
    thinking: bool | None = None  # told to templates that can switch it (`enable_thinking`, `thinking`)
    variables: Mapping[str, Any] = field(default_factory=dict)  # whatever else the template reads
    prefix: str = ""  # put behind the generation prompt: every answer begins with it

    def __post_init__(self) -> None:
        if self.name:
            self.source(None)  # what a tokenizer's own template reads is not known yet

    def named_files(self) -> tuple[Path, ...]:
        """The .jinja file, if it is one: what is made with it is made again when it changes."""
        return (Path(self.name).expanduser(),) if self.name and self.name not in NAMED else ()

    def source(self, tokenizer: Any) -> str:
        """Return the jinja text; raises UserError if the tokenizer has none, or a variable that it does not read."""
        if self.name in NAMED:
            text = NAMED[self.name]
        elif self.name:
            text = self._file()
        else:
            text = tokenizer.chat_template or ""
            if isinstance(text, Mapping):
                text = text.get("default", "")
            if not text:
                allowed = f"the tokenizer has no chat template: name one of {', '.join(NAMED)}, or a .jinja file"
                raise UserError("template.name", self.name, allowed)
        for name in self.told(text):
            if not re.search(rf"\b{re.escape(name)}\b", text):
                value = self.variables.get(name)
                raise UserError(f"template.variables.{name}", value, "the template reads no such name")
        return str(text)

    def told(self, source: str) -> dict[str, Any]:
        """The variables that the template is given; raises UserError if it cannot switch thinking."""
        told = dict(self.variables)
        if self.thinking is not None:
            names = [name for name in ("enable_thinking", "thinking") if re.search(rf"\b{name}\b", source)]
            if not names:
                raise UserError("template.thinking", self.thinking, "the template cannot switch thinking: leave it out")
            told |= dict.fromkeys(names, self.thinking)
        return told

    def _file(self) -> str:
        path = Path(self.name).expanduser()
        if not path.is_file():
            allowed = f"{did_you_mean(self.name, NAMED)}must be {', '.join(NAMED)}, a .jinja file, or left out"
            raise UserError("template.name", self.name, allowed)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("template.name", self.name, f"cannot be read: {error}") from None
        check_source(text, "template.name", self.name)
        return text


def check_source(text: str, where: str, name: str) -> None:
    """Raise UserError for a text that is no jinja, or a template that would put nothing of a conversation into it."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        # Transformers' own tag, which marks what the assistant says, is no part of jinja.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_MARKS.sub("", text))
    except TemplateSyntaxError as error:
        raise UserError(where, name, f"is not jinja: line {error.lineno}: {error.message}") from None
    if not re.search(r"\bmessages\b", text):
        raise UserError(where, name, "must be a chat template: it never reads `messages`")


@dataclass(frozen=True)
class Templated:
    """A conversation up to where the model goes on."""

    token_ids: tuple[int, ...]
    text: str  # masked, see `ControlTokens`
    opened: str  # what its end says already on the model's behalf, e.g. "<think>\n"


class ChatTemplate:
    """A template with its tokenizer. Ids are those of `apply_chat_template`, but for control tokens in contents."""

    def __init__(self, tokenizer: Any, config: TemplateConfig | None = None) -> None:
        self.config = config or TemplateConfig()
        self.source = self.config.source(tokenizer)
        self.control = ControlTokens(tokenizer)
        self._tokenizer, self._told = tokenizer, self.config.told(self.source)
        if self.config.name:  # a template that was not made for this tokenizer: Qwen has no begin token
            names = ("bos_token", "eos_token", "pad_token")
            self._told |= {name: "" for name in names if getattr(tokenizer, name) is None}

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = (), where: str = "messages") -> Templated:
        """Return the conversation with the generation prompt and the prefix; raises UserError naming `where`."""
        messages = self.with_system(messages)
        text = self.render(messages, tools, where, add_generation_prompt=True)
        before = self.render(messages, tools, where, add_generation_prompt=False, check=False)
        added = text[len(before) :] if text.startswith(before) else ""
        opened = _OPENED.search(added)
        text += self.config.prefix
        return Templated(tuple(self.control.encode(text)), text, (opened[0] if opened else "") + self.config.prefix)

    def with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Put the configured system message first where there is none."""
        if not self.config.system or messages[0]["role"] in ("system", "developer"):
            return messages
        return ({"role": "system", "content": self.config.system}, *messages)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] = (),
        where: str = "messages",
        *,
        add_generation_prompt: bool,
        check: bool = True,
        **variables: Any,
    ) -> str:
        """Return the masked text; raises UserError if the template refuses a message or drops its content."""
        self._check_known(messages, tools, where)
        masked = [self.given(message) for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                masked,
                tools=self.control.mask(list(tools)) or None,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **{**self._told, **variables},
            )
        except Exception as error:  # whatever a template runs into
            reason = " ".join(str(error).split())[:160]
            raise UserError(where, [m["role"] for m in messages], f"the chat template says: {reason}") from None
        if check:
            for place, message in enumerate(masked):
                self._check_shown(message, text, place == len(masked) - 1, f"{where}[{place}]")
        return text

    def given(self, message: Message) -> dict[str, Any]:
        """Return the message in the template's own words, its texts masked."""
        found = {key: value for key, value in message.items() if key != "weight"}
        if "tool_calls" in found:
            found["tool_calls"] = [self._call(call) for call in found["tool_calls"]]
        if found["role"] == "developer" and "developer" not in self.source:
            found["role"] = "system"
        reasoning = found.pop("reasoning_content", None)
        if reasoning is not None:
            key = next((name for name in REASONING if name in self._fields), None)
            if key is not None:
                found[key] = reasoning
            else:
                found["content"] = f"<think>\n{reasoning.strip()}\n</think>\n\n{found['content']}"
        role = found.pop("role")
        return {**self.control.mask(found, spoken=role == "assistant"), "role": role}

    def _call(self, call: Any) -> Any:
        """A call whose arguments are what the template takes: an object, or its JSON, which is OpenAI's spelling."""
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "arguments" not in function:
            return call
        arguments = function["arguments"]
        if isinstance(arguments, str) and _AS_JSON.search(self.source):
            with contextlib.suppress(ValueError):
                arguments = json.loads(arguments)
        elif isinstance(arguments, Mapping) and _AS_TEXT.search(self.source) and not _AS_JSON.search(self.source):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**function, "arguments": arguments}}

    @property
    def _fields(self) -> set[str]:
        """Names that the template reads of a message: message.NAME, message['NAME'], or 'NAME' in message."""
        return set(re.findall(r"\w+(?:\.|\[['\"])(\w+)", self.source)) | set(
            re.findall(r"['\"](\w+)['\"]\s+in\s+\w+", self.source)
        )

    def _check_known(self, messages: Sequence[Message], tools: Sequence[Any], where: str) -> None:
        """Raise UserError for what the template has no place for."""
        if tools and not re.search(r"\btools\b", self.source):
            raise UserError(f"{where}: tools", len(tools), "the chat template has no place for tools")
        for place, message in enumerate(messages):
            name = f"{where}[{place}]"
            calls = message.get("tool_calls")
            if calls and "tool_calls" not in self.source:
                raise UserError(f"{name}: tool_calls", len(calls), "the chat template knows no tool calls")
            thinks = "</think>" in self.source or not self._fields.isdisjoint(REASONING)
            if message.get("reasoning_content") and not thinks:
                allowed = "the chat template has no place for reasoning: write it into the content, or template.name=r1"
                raise UserError(f"{name}: reasoning_content", message["reasoning_content"][:40], allowed)

    def _check_shown(self, message: Message, text: str, last: bool, where: str) -> None:
        """Raise UserError if the content of a message is not in the text; an assistant's past reasoning may go."""
        content = message["content"]
        if message["role"] == "assistant":
            content = "" if last else content.rpartition("</think>")[2]
        content = content.strip()
        if content and content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            found = f"{message['role']}: {self.control.unmask(content)[:60]}"
            raise UserError(where, found, "the chat template drops it")


def own_or_r1_zero(config: TemplateConfig, tokenizer: Any) -> TemplateConfig:
    """Return the config; without a name, and without a template of the tokenizer's (a base model's), R1-Zero's."""
    return config if config.name or tokenizer.chat_template else replace(config, name="r1_zero")


def tokenize_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    context: int | None = None,
    max_new_tokens: int = 1,
    config: TemplateConfig | None = None,
) -> tuple[Prompt, ...]:
    """Return the prompts with `token_ids` and what they `opened`; tokens that a prompt brings stay.

    Raises UserError for one too long for a context of `context` tokens, or with ids beyond the vocabulary.
    """
    from framework.data.tokenizer_files import vocabulary_size

    size = vocabulary_size(tokenizer)
    template = None
    tokenized = []
    for prompt in prompts:
        found = prompt
        if prompt.token_ids:
            check_token_ids(prompt, size)
        else:
            template = template or ChatTemplate(tokenizer, config)
            templated = template.prompt(prompt.conversation, where=f"prompt {prompt.id}: messages")
            found = replace(prompt, token_ids=templated.token_ids, opened=templated.opened)
        tokenized.append(found if context is None else checked_length(found, context, max_new_tokens))
    return tuple(tokenized)


def check_token_ids(prompt: Prompt, vocabulary: int) -> None:
    """Raise UserError if the prompt's own tokens are beyond the vocabulary."""
    if max(prompt.token_ids, default=0) >= vocabulary:
        allowed = f"must be below {vocabulary}: the vocabulary ends there"
        raise UserError(f"prompt {prompt.id}: token_ids", max(prompt.token_ids), allowed)


def checked_length(prompt: Prompt, context: int, max_new_tokens: int = 1) -> Prompt:
    """Return `prompt`; raises UserError if its tokens leave no room for `max_new_tokens` in the context."""
    tokens, limit = len(prompt.token_ids), context - max_new_tokens
    if tokens > limit:
        allowed = f"must be at most {limit}: the context holds {context}, and {max_new_tokens} are for the response"
        raise UserError(f"prompt {prompt.id}: tokens", tokens, allowed)
    return prompt
