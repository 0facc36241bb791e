from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.data.templates import (
    R1_CHAT_TEMPLATE,
    R1_ZERO_CHAT_TEMPLATE,
    V3_CHAT_TEMPLATE,
    render_chat,
    render_r1_zero,
)
from framework.errors import UserError

BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
    {"role": "user", "content": "{{ 2+2 }}?"},
]


def test_r1_zero_is_the_published_text() -> None:
    assert render_r1_zero("What is 2+2?") == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
        "User: What is 2+2? Assistant:"
    )


@pytest.mark.parametrize(
    ("question", "rendered"),
    [("2+2 =", "2+2 =."), ("Add.", "Add."), ("\nprompt. {x} \n", "prompt. {x}."), ("几?", "几?")],
)
def test_r1_zero_ends_the_question_with_one_stop(question: str, rendered: str) -> None:
    assert render_r1_zero(question).endswith(f". User: {rendered} Assistant:")


def test_v3_chat() -> None:
    thought = "<think>\neasy\n</think>\n\n2"
    turns = f"{BOS}Be brief.{USER}1+1?{ASSISTANT}{thought}{EOS}{USER}{{{{ 2+2 }}}}?"
    assert render_chat(V3_CHAT_TEMPLATE, CHAT) == turns + ASSISTANT
    assert render_chat(V3_CHAT_TEMPLATE, CHAT, add_generation_prompt=False) == turns


def test_r1_chat_forgets_the_reasoning_of_past_turns() -> None:
    turns = f"{BOS}Be brief.{USER}1+1?{ASSISTANT}\n\n2{EOS}{USER}{{{{ 2+2 }}}}?"
    assert render_chat(R1_CHAT_TEMPLATE, CHAT) == f"{turns}{ASSISTANT}<think>\n"
    assert render_chat(R1_CHAT_TEMPLATE, CHAT, add_generation_prompt=False) == turns


def test_r1_chat_keeps_the_reasoning_of_a_training_target_only_if_asked() -> None:
    target = [*CHAT, {"role": "assistant", "content": "<think>\nhard\n</think>\n\n4"}]
    erased = render_chat(R1_CHAT_TEMPLATE, target, add_generation_prompt=False)
    kept = render_chat(R1_CHAT_TEMPLATE, target, add_generation_prompt=False, keep_last_reasoning=True)
    assert "<think>" not in erased
    assert erased.endswith(f"{ASSISTANT}\n\n4{EOS}")
    assert "easy" not in kept
    assert kept == render_chat(R1_CHAT_TEMPLATE, CHAT) + f"hard\n</think>\n\n4{EOS}"  # continues the prompt


@pytest.mark.parametrize("template", [V3_CHAT_TEMPLATE, R1_CHAT_TEMPLATE])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "tool", "content": "x"}], "unknown role tool"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "must come first"),
    ],
)
def test_a_chat_out_of_order_is_refused(template: str, messages: list[dict[str, str]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        render_chat(template, messages)


@given(st.text(), st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_v3_chat_is_append_only(system: str, turns: list[tuple[str, str]]) -> None:
    messages = [{"role": "system", "content": system}]
    sampled = ""
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        prompt = render_chat(V3_CHAT_TEMPLATE, messages)
        assert prompt.startswith(sampled)
        sampled = prompt + answer + EOS
        messages.append({"role": "assistant", "content": answer})
    assert render_chat(V3_CHAT_TEMPLATE, messages, add_generation_prompt=False) == sampled


@pytest.mark.parametrize("template", [V3_CHAT_TEMPLATE, R1_CHAT_TEMPLATE])
def test_tokenizers_render_the_templates_alike(template: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS)
    tokenizer.chat_template = template
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == render_chat(
        template, CHAT
    )
    target = {"add_generation_prompt": False, "keep_last_reasoning": True}
    assert tokenizer.apply_chat_template(CHAT[:3], tokenize=False, **target) == render_chat(
        template, CHAT[:3], **target
    )


@pytest.mark.parametrize("question", ["Calculate 1 + 2.", " 2 + 2 = ", "Why?"])
def test_a_chat_with_r1_zero_is_asked_as_it_was_trained(question: str) -> None:
    rendered = render_chat(R1_ZERO_CHAT_TEMPLATE, [{"role": "user", "content": question}])
    assert rendered == BOS + render_r1_zero(question)
