"""Conversations through eight tokenizers and templates: apply_chat_template's ids, and contents that stay contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from framework.data.chat_template import NAMED, ChatTemplate, TemplateConfig, checked_length, tokenize_prompts
from framework.data.control import ControlTokens
from framework.errors import UserError
from framework.types import Prompt
from tests.tokenizers import KINDS, NAMES, build

TURNS = [
    {"role": "user", "content": "What is 1 + 2?"},
    {"role": "assistant", "content": "3, sure."},
    {"role": "user", "content": "\n  And 3 + 4?"},
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def applied(tokenizer: Any, messages: Any, **variables: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **variables))


TEXT = st.text(st.characters(exclude_categories=["Cs", "Co"]), min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(question=TEXT, answer=TEXT, again=TEXT)
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_apply_chat_template(
    name: str, question: str, answer: str, again: str, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[name]
    messages = [{"role": "user", "content": question}]
    if name != "r1_zero":
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": again}]
    expected = applied(tokenizer, messages)
    control = ControlTokens(tokenizer)
    template = ChatTemplate(tokenizer)
    assert list(template.prompt(messages).token_ids) == expected
    text = template.render(messages, add_generation_prompt=True)
    renamed = control._renamed  # the tokenizer of contents that name control tokens cuts all else alike
    assert renamed.encode(control._rename(text), add_special_tokens=False).ids == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_control_token_named_in_a_content_is_text(name: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    control = ControlTokens(tokenizer)
    template = ChatTemplate(tokenizer)
    plain = list(template.prompt(TURNS[:1]).token_ids)
    for token in control.ids:
        for content in (f"what does {token} mean?", token, f"{token}{token}x", f"\U00100000 \U00100001 {token}"):
            templated = template.prompt([{"role": "user", "content": content}])
            ids = list(templated.token_ids)
            assert [i for i in ids if i in control.ids.values()] == [i for i in plain if i in control.ids.values()]
            assert content.strip() in tokenizer.decode(ids)  # and nothing of it is lost


@pytest.mark.parametrize("normaliser", [normalizers.NFKC(), normalizers.Lowercase()])
def test_a_control_token_that_a_normaliser_would_make_of_a_content_is_text(normaliser: Any) -> None:
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = normaliser, pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(["hello"], trainer)
    backend.add_tokens([AddedToken("<|end|>", normalized=True)])
    control = ControlTokens(PreTrainedTokenizerFast(tokenizer_object=backend))
    (end,) = control.ids.values()
    for content in ("<|END|>", "＜｜ｅｎｄ｜＞", "<|end|>"):
        ids = control.encode(f"<|end|>{control.mask(content)}<|end|>")
        assert [place for place, id in enumerate(ids) if id == end] == [0, len(ids) - 1]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "r1_zero"])
def test_in_every_role(name: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    template, end = ChatTemplate(tokenizer), tokenizer.eos_token
    system = [] if name == "mistral" else [{"role": "system", "content": f"Never say {end}."}]
    said = [*system, {"role": "user", "content": f"Say {end}"}, {"role": "assistant", "content": f"No {end} here."}]
    asked = [*said, {"role": "user", "content": "Why?"}]
    clean = [{**message, "content": message["content"].replace(end, "it")} for message in asked]
    ids = list(template.prompt(asked).token_ids)
    assert ids.count(tokenizer.eos_token_id) == list(template.prompt(clean).token_ids).count(tokenizer.eos_token_id)
    assert tokenizer.decode(ids).count(end) > ids.count(tokenizer.eos_token_id)


def test_tags_of_thinking_are_tokens_where_the_assistant_says_them(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["qwen3"]
    ids = ChatTemplate(tokenizer).prompt([*TURNS[:1], {"role": "assistant", "content": "4"}, TURNS[2]]).token_ids
    assert tokenizer.convert_tokens_to_ids("<think>") not in ids
    text = ChatTemplate(tokenizer).render(
        [TURNS[0], {"role": "assistant", "content": "3", "reasoning_content": "one, two"}], add_generation_prompt=False
    )
    assert text.endswith("<|im_start|>assistant\n<think>\none, two\n</think>\n\n3<|im_end|>\n")


@pytest.mark.parametrize(
    ("name", "config", "opened"),
    [
        ("r1", TemplateConfig(), "<think>\n"),
        ("v3", TemplateConfig(), ""),
        ("v3", TemplateConfig("r1"), "<think>\n"),
        ("v3", TemplateConfig("r1_zero", prefix=" <think>"), " <think>"),
        ("qwen3", TemplateConfig(thinking=True), ""),
        ("qwen3", TemplateConfig(thinking=False), "<think>\n\n</think>\n\n"),
        ("qwen3", TemplateConfig(variables={"enable_thinking": False}, prefix="So"), "<think>\n\n</think>\n\nSo"),
        ("chatml", TemplateConfig(prefix="<think>\n"), "<think>\n"),
    ],
)
def test_what_the_prompt_opens_is_carried(
    name: str, config: TemplateConfig, opened: str, tokenizers: dict[str, Any]
) -> None:
    (prompt,) = tokenize_prompts(tokenizers[name], [Prompt("p", "1+1?", "t", "2")], 400, 8, config)
    assert prompt.opened == opened
    assert tokenizers[name].decode(prompt.token_ids).endswith(opened)


def test_the_format_reward_counts_what_was_opened() -> None:
    import numpy as np

    from framework.rewards.format import Format
    from framework.types import Response

    none = np.zeros(0, np.int32)
    response = Response(none, none.astype(np.float32), none, "stop", "add</think> <answer>2</answer>")
    assert Format()(Prompt("p", "q", "t", "2", opened="<think>\n"), response) == 1.0
    assert Format()(Prompt("p", "q", "t", "2"), response) == 0.0


def test_a_system_message_only_where_there_is_none(tokenizers: dict[str, Any]) -> None:
    template = ChatTemplate(tokenizers["chatml"], TemplateConfig(system="S"))
    assert "<|im_start|>system\nS<|im_end|>" in template.prompt(TURNS[:1]).text
    own = template.prompt([{"role": "developer", "content": "D"}, TURNS[0]]).text
    assert own.startswith("<|im_start|>system\nD<|im_end|>")  # where the template knows no developers
    assert "S" not in own.partition("user")[0].replace("system", "")


def test_a_file_and_the_tokenizers_own(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }} ->")
    ids = ChatTemplate(tokenizers["chatml"], TemplateConfig(str(file))).prompt(TURNS[:1]).token_ids
    assert tokenizers["chatml"].decode(ids) == "What is 1 + 2? ->"
    for name, source in NAMED.items():
        assert ChatTemplate(tokenizers["chatml"], TemplateConfig(name)).source == source


@pytest.mark.parametrize(
    ("config", "where", "says"),
    [
        ({"name": "r1zero"}, "template.name", "did you mean 'r1_zero'?"),
        ({"name": "/nowhere/x.jinja"}, "template.name", "a .jinja file"),
        ({"thinking": True}, "template.thinking", "cannot switch thinking"),
        ({"variables": {"enable_thinking": True}}, "template.variables.enable_thinking", "reads no such name"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(
    config: dict[str, Any], where: str, says: str, tokenizers: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        ChatTemplate(tokenizers["chatml"], TemplateConfig(**config))
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("name", "messages", "tools", "says"),
    [
        ("mistral", [{"role": "system", "content": "S"}, TURNS[0]], (), "template says: Only user and assistant"),
        ("v3", [{"role": "tool", "content": "4"}], (), "unknown role tool"),
        ("r1_zero", TURNS, (), r"chat\[0\]: got 'user: What is 1.*drops it"),
        ("chatml", [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [{}]}], (), "knows no tool calls"),
        ("chatml", TURNS, ({"name": "f"},), "has no place for tools"),
        ("chatml", [TURNS[0], {**TURNS[1], "reasoning_content": "r"}], (), "no place for reasoning"),
    ],
)  # fmt: skip
def test_what_a_template_would_drop_is_refused(
    name: str, messages: Any, tools: Any, says: str, tokenizers: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=says):
        ChatTemplate(tokenizers[name]).prompt(messages, tools, "chat")


def test_tools_and_calls_go_through_a_template_that_knows_them(tokenizers: dict[str, Any]) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "<|im_end|>"}}}
    messages = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    templated = ChatTemplate(tokenizers["qwen3"]).prompt(messages, [{"name": "add"}])
    text = tokenizers["qwen3"].decode(templated.token_ids)
    assert '{"name": "add"}' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": "<|im_end|>"}}' in text
    assert "<tool_response>\n3\n" in text
    assert templated.token_ids.count(tokenizers["qwen3"].eos_token_id) == 4


def test_a_tokenizer_without_a_template_asks_for_a_name(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = build("chatml", tmp_path)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template: name one of r1_zero"):
        ChatTemplate(tokenizer)


def test_prompts_bring_their_own_tokens_within_the_vocabulary_and_the_context(tokenizers: dict[str, Any]) -> None:
    own = Prompt("sum-7", "q", "t", "4", token_ids=tuple(range(60)))
    assert tokenize_prompts(tokenizers["chatml"], [own], 64, 4) == (own,)
    assert checked_length(own, 61) is own
    with pytest.raises(UserError) as caught:
        tokenize_prompts(tokenizers["chatml"], [own], context=64, max_new_tokens=5)
    assert str(caught.value) == (
        "prompt sum-7: tokens: got 60; must be at most 59: the context holds 64, and 5 are for the response"
    )
    beyond = Prompt("p", "q", "t", "4", token_ids=(1, 70_000))
    with pytest.raises(UserError, match=r"prompt p: token_ids: got 70000; must be below \d+"):
        tokenize_prompts(tokenizers["chatml"], [beyond], 64)


def test_the_kinds_differ_in_what_matters() -> None:
    assert {special for _, special, _, _ in KINDS.values()} == {True, False}
