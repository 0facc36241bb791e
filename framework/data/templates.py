"""Prompt templates: R1-Zero's plain text, V3's and R1's chat formats as the jinja strings that tokenizers carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from framework.data.tokenizer_training import ASSISTANT, BOS, EOS, USER
from framework.errors import UserError

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


# R1-Zero has no turns: the last message that is no answer is the question; what stands before it is not shown.
R1_ZERO_CHAT_TEMPLATE = (
    "{%- set answered = messages[-1]['role'] == 'assistant' -%}"
    "{%- set question = messages[-2 if answered else -1]['content'].rstrip().lstrip('\\r\\n') -%}"
    f"{{{{- bos_token + {_BEFORE!r} + question -}}}}"
    "{{- '' if question[-1:] in ['.', '?', '!', '。', '？', '！'] else '.' -}}"
    f"{{{{- {' ' + _AFTER!r} -}}}}"
    "{%- if answered -%}{{- messages[-1]['content'] + eos_token -}}{%- endif -%}"
)


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


@cache
def _compiled(template: str) -> Template:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)  # as transformers sets it
    environment.globals["raise_exception"] = _raise_user_error
    return environment.from_string(template)


def _raise_user_error(message: str) -> NoReturn:
    raise UserError("messages of a chat", message, "roles are system (first only), user and assistant")
