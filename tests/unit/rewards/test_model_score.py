from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from framework.errors import UserError
from framework.rewards import model_score
from framework.rewards.base import RewardConfig, score_response
from framework.rewards.format import Format
from framework.rewards.model_score import ModelScore, rule_names, with_checkpoints
from framework.types import Prompt
from tests.contract.sample_rewards import response_of

PROMPT = Prompt("p0", "Hello?", "general_greeting", "Hi!", opened="<think>\n")
MODEL = Path("model")


class Stub:
    """A reward model that likes long answers; keeps what it has read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def score(self, prompt: Prompt, answer: str) -> float:
        self.read.append(answer)
        return float(len(answer) - 3)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = Stub()
    monkeypatch.setattr(model_score, "_loaded", lambda checkpoint: found)
    return found


def test_the_helpful_model_reads_the_summary_and_the_safety_model_everything(stub: Stub) -> None:
    response = response_of("be nice\n</think>\n\nHi!")
    assert ModelScore(checkpoint=MODEL)(PROMPT, response) == 0.5
    ModelScore(checkpoint=MODEL, reads="everything")(PROMPT, response)
    assert stub.read == ["Hi!", "<think>\nbe nice\n</think>\n\nHi!"]


def test_a_score_is_the_sigmoid_of_the_logit_and_never_overflows(stub: Stub) -> None:
    reward = ModelScore(checkpoint=MODEL)
    assert reward(PROMPT, response_of("</think> Hello")) == pytest.approx(1 / (1 + math.exp(-2)))
    assert reward(PROMPT, response_of("</think> " + "o" * 10_000)) == pytest.approx(1.0)


@pytest.mark.parametrize(("text", "finish"), [("no tags", "stop"), ("</think>", "stop"), ("</think> Hi!", "length")])
def test_what_is_not_in_form_or_cut_off_scores_nothing(stub: Stub, text: str, finish: str) -> None:
    assert ModelScore(checkpoint=MODEL)(PROMPT, response_of(text, finish)) == 0.0
    assert not stub.read


def test_without_a_model_a_response_is_a_failed_one() -> None:
    score = score_response({"helpful": ModelScore()}, PROMPT, response_of("</think> Hi!"))
    assert "checkpoint: got None" in score.error


def test_models_are_connected_by_name_and_rules_are_the_rest() -> None:
    config = RewardConfig({"format": Format(), "helpful": ModelScore(), "safety": ModelScore()})
    connected = with_checkpoints(config, {"helpful": MODEL}).components
    assert isinstance(connected["helpful"], ModelScore)
    assert connected["helpful"].checkpoint == MODEL
    assert connected["safety"] == ModelScore()
    assert rule_names(config) == ("format",)
    for name in ("format", "helpfull"):
        with pytest.raises(UserError, match=rf"reward\.components\.{name}: got '.*'; a reward model is connected"):
            with_checkpoints(config, {name: MODEL})


def test_the_logit_is_of_the_row_that_training_would_score(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from framework.data.chat_template import ChatTemplate, TemplateConfig
    from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
    from framework.models.scalar_head import with_scalar_head
    from framework.stages.preferences import encode_answer
    from framework.stages.reward_model import name_padding
    from tests.learners import TINY_V3
    from tests.tokenizers import build

    size = vocabulary_size(build("r1", tmp_path))
    torch.manual_seed(0)
    sizes = with_scalar_head(replace(TINY_V3, vocab_size=size).hf_config())
    AutoModelForSequenceClassification.from_config(sizes).save_pretrained(tmp_path)
    name_padding(tmp_path)
    reward = ModelScore(checkpoint=tmp_path, reads="everything")
    value = reward(PROMPT, response_of("be nice\n</think>\n\nHi!"))
    template = ChatTemplate(load_tokenizer(tmp_path), TemplateConfig("r1"))
    answer = {"role": "assistant", "content": "<think>\nbe nice\n</think>\n\nHi!"}
    row_T = encode_answer(template, ({"role": "user", "content": "Hello?"},), answer, "x")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logit = float(model(input_ids=torch.tensor(row_T[None], dtype=torch.int64)).logits[0, 0])
    assert value == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)
