"""A user's prompts for a base model: put into its chat template, and what cannot be is said before a run starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.artifacts import Checkpoint
from framework.data.chat_template import TemplateConfig
from framework.data.readers import read_prompts
from framework.errors import UserError
from framework.stages.prompts import PreparePrompts, PromptsConfig, PromptsInputs, check_prompts
from framework.types import Prompt
from tests.tokenizers import build
from tests.unit.stages.test_collect import runtime


def test_prompts_are_in_the_models_own_template_and_carry_what_it_opened(tmp_path: Path) -> None:
    tokenizer = build("qwen3", tmp_path / "base")
    rows = [{"frage": f"{i} + {i}?", "gold": 2 * i, "level": i % 3} for i in range(40)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = PromptsConfig(str(tmp_path / "p.jsonl"), columns={"text": "frage", "answer": "gold"})
    stage = PreparePrompts(config, template=TemplateConfig(thinking=False))
    written = stage.run(PromptsInputs(Checkpoint(tmp_path / "base")), runtime(tmp_path)).prompts.path
    train, heldout = read_prompts(written / "train.jsonl"), read_prompts(written / "heldout.jsonl")
    assert len(train) + len(heldout) == 40
    for prompt in (*train, *heldout):
        asked = [{"role": "user", "content": prompt.text}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, enable_thinking=False, return_dict=False)
        assert list(prompt.token_ids) == ids
        assert prompt.opened == "<think>\n\n</think>\n\n"
        assert prompt.columns["level"] in (0, 1, 2)


def test_a_base_without_a_template_is_asked_in_r1_zeros(tmp_path: Path) -> None:
    tokenizer = build("chatml", tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    (tmp_path / "p.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}')
    stage = PreparePrompts(PromptsConfig(heldout=str(tmp_path / "p.jsonl")))
    written = stage.run(PromptsInputs(Checkpoint(tmp_path / "base")), runtime(tmp_path)).prompts.path
    (prompt,) = read_prompts(written / "heldout.jsonl")
    assert tokenizer.decode(prompt.token_ids).endswith("User: 1 + 1? Assistant:")


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (Prompt("p", "long " * 100, "t", "1"), "prompt p: tokens: got"),
        (Prompt("p", "q", "t", "1", token_ids=(70_000,)), "prompt p: token_ids: got 70000"),
        (Prompt("p", "q", "t", "1", messages=({"role": "tool", "content": "x"},)), "prompt p: messages"),
    ],
)
def test_what_cannot_be_is_said_at_plan(prompt: Prompt, says: str, tmp_path: Path) -> None:
    build("mistral", tmp_path)
    check_prompts(tmp_path, [Prompt("good", "1 + 1?", "t", "2")], TemplateConfig(), 64, 16)
    with pytest.raises(UserError, match=says):
        check_prompts(tmp_path, [prompt], TemplateConfig(), 64, 16)
