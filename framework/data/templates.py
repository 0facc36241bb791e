"""Prompt templates: R1-Zero's plain text, V3's and R1's chat formats as the jinja strings that tokenizers carry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from framework.data.tokenizer import ASSISTANT, BOS, EOS, USER
from framework.errors import UserError
from framework.types import Prompt

if TYPE_CHECKING:
    from jinja2 import Template

# Quoted from DeepSeek-R1 (January 2025), Table 1; "prompt" stands for the question.
R1_ZERO_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: prompt. Assistant:"
)
_BEFORE, _AFTER = R1_ZERO_TEMPLATE.split("prompt. ")

# A system message may only come first: gathered from anywhere, later ones would change tokens already sampled.
_CHAT = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if not loop.first -%}{{- raise_exception('a system message must come first') -}}{%- endif -%}
{{- message['content'] -}}
{%- elif message['role'] == 'user' -%}
{{- USER + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- ASSISTANT + ANSWER + eos_token -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- GENERATION -}}{%- endif -%}
""".replace("USER", f"'{USER}'").replace("ASSISTANT", f"'{ASSISTANT}'")

# BOS, system text, then <｜User｜>question<｜Assistant｜>answer EOS per turn. Append-only: what a turn adds never
# changes what stands before it, so tokens sampled in one turn stay valid in the next.
V3_CHAT_TEMPLATE = _CHAT.replace("ANSWER", "message['content']").replace("GENERATION", f"'{ASSISTANT}'")

# As V3, but the model is made to think first, and answers keep only what follows their last </think>. That holds for
# the last message too, which would erase the reasoning of a training target: keep_last_reasoning=True keeps that one.
R1_CHAT_TEMPLATE = _CHAT.replace(
    "ANSWER",
    "(message['content'] if loop.last and keep_last_reasoning is defined and keep_last_reasoning"
    " else message['content'].split('</think>')[-1])",
).replace("GENERATION", f"'{ASSISTANT}<think>\\n'")


# R1-Zero has no turns: the last message is the question, and the rest of the conversation is not shown to it.
R1_ZERO_CHAT_TEMPLATE = (
    "{%- set question = messages[-1]['content'].rstrip().lstrip('\\r\\n') -%}"
    f"{{{{- bos_token + {_BEFORE!r} + question -}}}}"
    "{{- '' if question[-1:] in ['.', '?', '!', '。', '？', '！'] else '.' -}}"
    f"{{{{- {' ' + _AFTER!r} -}}}}"
)


class TextEncoder(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return token ids, with the special tokens that the tokenizer adds by itself."""
        ...


def render_r1_zero(question: str) -> str:
    """Put a question into R1-Zero's template; ends in "Assistant:". A question's own full stop is not doubled."""
    question = question.rstrip().lstrip("\r\n")  # a first line may be indented: code, a drawing
    stop = "" if question.endswith((".", "?", "!", "。", "？", "！")) else "."
    return f"{_BEFORE}{question}{stop} {_AFTER}"


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool = True,
    bos_token: str = BOS,
    eos_token: str = EOS,
    **variables: Any,
) -> str:
    """Render {"role", "content"} messages as `tokenizer.apply_chat_template` does, without a tokenizer.

    Raises UserError on an unknown role or a system message that is not the first.
    """
    return _compiled(template).render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=bos_token,
        eos_token=eos_token,
        **variables,
    )


def prompt_tokens(tokenizer: TextEncoder, prompt: Prompt) -> tuple[int, ...]:
    """Return the prompt's own tokens, or else those of its question in R1-Zero's template."""
    return prompt.token_ids or tuple(tokenizer.encode(render_r1_zero(prompt.text)))


def tokenize_prompts(
    tokenizer: TextEncoder, prompts: Iterable[Prompt], context: int, max_new_tokens: int = 1
) -> tuple[Prompt, ...]:
    """Return the prompts with `token_ids`; raises UserError for one too long for a context of `context` tokens."""
    tokenized = (replace(prompt, token_ids=prompt_tokens(tokenizer, prompt)) for prompt in prompts)
    return tuple(checked_length(prompt, context, max_new_tokens) for prompt in tokenized)


def checked_length(prompt: Prompt, context: int, max_new_tokens: int = 1) -> Prompt:
    """Return `prompt`; raises UserError if its tokens leave no room for `max_new_tokens` in the context."""
    tokens, limit = len(prompt.token_ids), context - max_new_tokens
    if tokens > limit:
        allowed = f"must be at most {limit}: the context holds {context}, and {max_new_tokens} are for the response"
        raise UserError(f"prompt {prompt.id}: tokens", tokens, allowed)
    return prompt


@cache
def _compiled(template: str) -> Template:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets it
    environment.globals["raise_exception"] = _raise_user_error
    return environment.from_string(template)


def _raise_user_error(message: str) -> NoReturn:
    raise UserError("messages of a chat", message, "roles are system (first only), user and assistant")
