"""Conversations to marked tokens: a row begins as the generation prompt ends, and nothing is mistrained in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.data.chat_encoding import encode_chat
from framework.data.chat_shards import Chat, EncodedChat
from framework.data.chat_template import ChatTemplate, TemplateConfig
from framework.errors import UserError
from tests.tokenizers import NAMES, build

USER, AGAIN = {"role": "user", "content": "What is 1 + 2?"}, {"role": "user", "content": "\nAnd 3 + 4?"}
FIRST = {"role": "assistant", "content": "<think>\none and two\n</think>\n\n3"}
SECOND = {"role": "assistant", "content": "<think>\nthree and four\n</think>\n\n7"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def learned_text(tokenizer: Any, chat: EncodedChat) -> list[str]:
    """The runs of learned tokens as text."""
    starts = np.flatnonzero(np.diff(chat.learned, prepend=0) == 1)
    ends = np.flatnonzero(np.diff(chat.learned, append=0) == -1)
    return [tokenizer.decode(chat.token_ids[a : b + 1]) for a, b in zip(starts, ends, strict=True)]


def encode(tokenizer: Any, *messages: Any, config: TemplateConfig | None = None, tools: Any = ()) -> EncodedChat:
    return encode_chat(ChatTemplate(tokenizer, config), Chat("c", messages, tools, "chats.jsonl:7"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spaced", ["", "\n", " "])
def test_a_row_begins_with_the_generation_prompts_own_tokens(
    name: str, spaced: str, tokenizers: dict[str, Any]
) -> None:
    tokenizer, answer = tokenizers[name], dict(FIRST)
    if name not in ("r1", "deepseek"):
        answer["content"] = spaced + "3 it is"  # a blank or a line break that would merge with what precedes it
    row = encode(tokenizer, USER, answer)
    prompt = ChatTemplate(tokenizer).prompt([USER])
    size = len(prompt.token_ids)
    assert row.token_ids[:size].tolist() == list(prompt.token_ids)
    assert not row.learned[:size].any()
    (learned,) = learned_text(tokenizer, row)
    assert prompt.opened + learned.strip() in (
        answer["content"].strip() + tokenizer.eos_token,
        f"<think>\n\n</think>\n\n3 it is{tokenizer.eos_token}",
        f"<think>\n\n</think>\n\n{answer['content']}{tokenizer.eos_token}",
    )


def test_every_answer_and_its_end_is_learned(tokenizers: dict[str, Any]) -> None:
    row = encode(tokenizers["v3"], USER, FIRST, AGAIN, SECOND)
    end = tokenizers["v3"].eos_token
    assert learned_text(tokenizers["v3"], row) == [FIRST["content"] + end, SECOND["content"] + end]
    whole = tokenizers["v3"].apply_chat_template([USER, FIRST, AGAIN, SECOND], return_dict=False)
    assert row.token_ids.tolist() == whole


def test_chatml_learns_no_line_break_behind_the_end(tokenizers: dict[str, Any]) -> None:
    row = encode(tokenizers["chatml"], USER, {"role": "assistant", "content": "3"}, AGAIN, {**SECOND, "content": "7"})
    assert learned_text(tokenizers["chatml"], row) == ["3<|im_end|>", "7<|im_end|>"]
    assert tokenizers["chatml"].decode(row.token_ids).endswith("7<|im_end|>\n")


@pytest.mark.parametrize("name", ["r1", "deepseek"])  # ours, which can keep the last reasoning, and the published one
def test_r1_learns_the_last_answer_with_its_reasoning(name: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[name]
    row = encode(tokenizer, USER, FIRST, AGAIN, SECOND)
    assert learned_text(tokenizer, row) == [SECOND["content"].removeprefix("<think>\n") + tokenizer.eos_token]
    assert "one and two" not in tokenizer.decode(row.token_ids)
    same = encode(tokenizer, USER, FIRST, AGAIN, {**SECOND, "content": "7", "reasoning_content": "three and four"})
    assert same.token_ids.tolist() == row.token_ids.tolist()


@pytest.mark.parametrize("content", ["7", "<think>three</think>7", "\n<think>\nthree\n</think>7"])
@pytest.mark.parametrize("name", ["r1", "deepseek"])
def test_an_answer_that_begins_otherwise_is_refused(name: str, content: str, tokenizers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"chats\.jsonl:7\[1\]: got .*; must begin with '<think>\\n'"):
        encode(tokenizers[name], USER, {"role": "assistant", "content": content})
    with pytest.raises(UserError, match="must begin with 'So:'"):
        encode(tokenizers["chatml"], USER, {**FIRST, "content": "7"}, config=TemplateConfig(prefix="So:"))


def test_reasoning_goes_through_a_template_that_knows_it(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["qwen3"]
    row = encode(tokenizer, USER, {"role": "assistant", "content": "3", "reasoning_content": "one and two"})
    assert learned_text(tokenizer, row) == ["<think>\none and two\n</think>\n\n3<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids("<think>") in row.token_ids
    same = encode(tokenizer, USER, FIRST)
    assert same.token_ids.tolist() == row.token_ids.tolist()
    with pytest.raises(UserError, match=r"\[1\].*does not go on from it"):
        encode(
            tokenizer, USER, {**FIRST, "content": "3", "reasoning_content": "r"}, config=TemplateConfig(thinking=False)
        )
    plain = encode(tokenizer, USER, {"role": "assistant", "content": "3"}, config=TemplateConfig(thinking=False))
    assert learned_text(tokenizer, plain) == ["3<|im_end|>"]


def test_tool_calls_are_learned(tokenizers: dict[str, Any]) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = encode(tokenizers["qwen3"], USER, called, tools=({"name": "add"},))
    (learned,) = learned_text(tokenizers["qwen3"], row)
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in learned
    spelt = {**called, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}  # as OpenAI spells it
    assert encode(tokenizers["qwen3"], USER, spelt, tools=({"name": "add"},)).token_ids.tolist() == (
        row.token_ids.tolist()
    )
    with pytest.raises(UserError, match=r"chats\.jsonl:7\[1\]: tool_calls"):
        encode(tokenizers["chatml"], USER, called)


def test_weight_0_is_context(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["v3"]
    end = tokenizer.eos_token
    one, two = {**FIRST, "content": "3"}, {**SECOND, "content": "7"}
    assert learned_text(tokenizer, encode(tokenizer, USER, {**one, "weight": 0}, AGAIN, two)) == ["7" + end]
    assert learned_text(tokenizer, encode(tokenizer, USER, {**one, "weight": 1}, AGAIN, {**two, "weight": 0})) == [
        "3" + end
    ]
    with pytest.raises(UserError, match=r"chats\.jsonl:7: .*no answer to learn"):
        encode(tokenizers["r1"], USER, FIRST, AGAIN, {**SECOND, "weight": 0})


def test_a_control_token_in_an_answer_ends_nothing(tokenizers: dict[str, Any]) -> None:
    for name in ("v3", "chatml", "deepseek"):
        tokenizer = tokenizers[name]
        end, think = tokenizer.eos_token, "<think>\n" if name == "deepseek" else ""
        row = encode(tokenizer, USER, {"role": "assistant", "content": f"{think}It is {end}, as text."})
        (learned,) = learned_text(tokenizer, row)
        assert learned == f"It is {end}, as text.{end}"
        assert (row.token_ids == tokenizer.eos_token_id).sum() == 1 + (name == "chatml")  # chatml ends the question too


def test_the_configured_system_message_is_in_the_row(tokenizers: dict[str, Any]) -> None:
    row = encode(tokenizers["chatml"], USER, {**FIRST, "content": "3"}, config=TemplateConfig(system="Be brief."))
    assert tokenizers["chatml"].decode(row.token_ids).startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_sft_keeps_the_bases_template_unless_told(tmp_path: Path) -> None:
    import json

    from framework.artifacts import ChatSet, Checkpoint
    from framework.data.tokenizer_files import load_tokenizer
    from framework.stages.chats import EncodeChats, EncodeInputs
    from tests.unit.stages.test_collect import runtime

    base = tmp_path / "base"
    own = build("chatml", base).chat_template
    (tmp_path / "chats").mkdir()
    row = {"id": "a", "messages": [USER, FIRST], "tools": [], "where": "x:1"}
    (tmp_path / "chats" / "train.jsonl").write_text(json.dumps(row))
    inputs = EncodeInputs(Checkpoint(base), ChatSet(tmp_path / "chats"))
    for name, expected in (("", own), ("r1", ChatTemplate(load_tokenizer(base), TemplateConfig("r1")).source)):
        saved = EncodeChats(200, TemplateConfig(name)).run(inputs, runtime(tmp_path / (name or "own"))).tokenizer
        assert load_tokenizer(saved.path).chat_template == expected
    with pytest.raises(UserError, match=r"x:1: tokens: got \d+; must be at most 9"):
        EncodeChats(9).run(inputs, runtime(tmp_path / "short"))


def test_a_student_gets_think_tags_in_its_own_tokenizer_and_what_was_dropped_is_no_split(tmp_path: Path) -> None:
    import json

    from framework.artifacts import ChatSet, Checkpoint
    from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
    from framework.stages.chats import EncodeChats, EncodeInputs
    from tests.unit.stages.test_collect import runtime

    base, chats = tmp_path / "base", tmp_path / "chats"
    size = vocabulary_size(build("chatml", base))
    (base / "config.json").write_text(json.dumps({"vocab_size": size + 2}))
    chats.mkdir()
    answer = {"role": "assistant", "content": "<think>\n1+2\n</think>\n\n3"}
    row = {"id": "a", "messages": [USER, answer], "tools": [], "where": "x:1"}
    (chats / "train.jsonl").write_text(json.dumps(row))
    (chats / "dropped.jsonl").write_text(json.dumps({"id": "b", "reason": "wrong"}))
    inputs, r1 = EncodeInputs(Checkpoint(base), ChatSet(chats)), TemplateConfig("r1")
    made = EncodeChats(200, r1, "added").run(inputs, runtime(tmp_path / "added"))
    assert [directory.name for directory in made.shards.path.iterdir()] == ["train"]
    tokenizer = load_tokenizer(made.tokenizer.path)
    assert tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [size, size + 1]
    long = {**row, "id": "long", "messages": [USER, {**answer, "content": answer["content"] * 2}]}
    (chats / "train.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(long)}")
    most = made.shards.path / "train" / "meta.json"
    size_of_short = json.loads(most.read_text())["tokens"]
    left = EncodeChats(size_of_short, r1, "added", drop_long=True).run(inputs, runtime(tmp_path / "left")).shards.path
    assert json.loads((left / "train" / "meta.json").read_text())["chats"] == 1
    assert (left / "dropped.jsonl").read_text() == '{"id": "long", "reason": "too_long"}\n'
    with pytest.raises(UserError, match="2 too long'; must have a conversation of at most 3 tokens"):
        EncodeChats(3, r1, "added", drop_long=True).run(inputs, runtime(tmp_path / "none"))
    with pytest.raises(UserError, match="found, but no <think> and no </think>"):
        EncodeChats(200, r1, "found").run(inputs, runtime(tmp_path / "found"))
