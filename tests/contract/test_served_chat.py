"""vLLM's server renders messages by ours: what a user writes is text. Its own registries and renderer, no engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from framework.engines.weights import SERVED_TEXT, register_transport
from tests.contract.families import write_checkpoint
from tests.tokenizers import build

TOLD = "what does <|im_end|> mean?"
ASKED = [
    {"role": "system", "content": "Be <|im_start|> brief."},
    {"role": "user", "content": [{"type": "text", "text": TOLD}]},
]


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ours, and vLLM's own."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.renderers.registry import renderer_from_config

    base = tmp_path_factory.mktemp("served") / "base"
    write_checkpoint("qwen3_tied", base)
    build("chatml", base)
    register_transport()
    made = {}
    for mode in (SERVED_TEXT, "hf"):
        arguments = EngineArgs(str(base), tokenizer_mode=mode, max_model_len=128, dtype="float32", enforce_eager=True)
        made[mode] = renderer_from_config(arguments.create_engine_config())
    return made


def rendered(renderer: Any, messages: list[Any], **kwargs: Any) -> tuple[list[Any], list[int]]:
    """The conversation and the tokens that both of a server's ways give."""
    from vllm.renderers.params import ChatParams

    params = ChatParams(chat_template_kwargs={"tokenize": False, "add_generation_prompt": True, **kwargs})
    conversation, prompt = renderer.render_messages(messages, params)
    again, prompt_again = asyncio.run(renderer.render_messages_async(messages, params))
    assert (again, prompt_again) == (conversation, prompt)
    told = renderer.default_chat_tok_params
    return conversation, renderer.tokenize_prompt(prompt, told)["prompt_token_ids"]


def test_control_tokens_in_messages_are_text(renderers: dict[str, Any]) -> None:
    tokenizer = renderers["hf"].get_tokenizer()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    conversation, ours = rendered(renderers[SERVED_TEXT], ASKED)
    _, theirs = rendered(renderers["hf"], ASKED)
    assert (ours.count(start), ours.count(end)) == (3, 2)
    assert (theirs.count(start), theirs.count(end)) == (4, 3), "vLLM's own has learned it: ours may go"
    assert tokenizer.decode(ours) == tokenizer.decode(theirs)
    assert TOLD in str(conversation)


def test_other_messages_have_vllms_own_tokens(renderers: dict[str, Any]) -> None:
    plain = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "ü"},
    ]
    assert rendered(renderers[SERVED_TEXT], plain) == rendered(renderers["hf"], plain)
