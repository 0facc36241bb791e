"""A real reward model of a few thousand parameters, in the process that training uses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.artifacts import content_hash
from framework.errors import UserError
from framework.rewards.base import RewardConfig
from framework.rewards.isolation import IsolatedScorer
from framework.rewards.reward_model import PreferenceModel
from framework.types import Prompt, ResponseGroup
from tests.contract.families import VOCABULARY, write_tokenizer
from tests.contract.sample_rewards import response_of

ROW = "<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
PROMPT = Prompt("p0", "say hello", "general_greeting", "hello")
TEXTS = ("<think> plan </think> hello", "<think> harm harm harm plan </think> hello", "hello hello there friend", "bye")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    directory = tmp_path_factory.mktemp("rm")
    write_tokenizer(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256, num_labels=1, pad_token_id=None,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_what_is_no_reward_model_shows_before_anything_is_scored(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    weights = load_file(other / "model.safetensors")
    save_file(weights | {"score.weight": weights["score.weight"].repeat(2, 1)}, other / "model.safetensors")
    with pytest.raises(UserError, match=r"score\.weight: got \(2, 16\); must give one number"):
        PreferenceModel(checkpoint=other).prepare()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    (other / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="its tokenizer must have the chat template"):
        PreferenceModel(checkpoint=other).prepare()


def alone(checkpoint: Path, text: str) -> float:
    """The score of one row by transformers itself."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    with torch.inference_mode():
        return float(AutoModelForSequenceClassification.from_pretrained(checkpoint)(torch.tensor([ids])).logits[0, 0])


def group(*texts: str) -> ResponseGroup:
    return ResponseGroup(PROMPT, tuple(map(response_of, texts)))


@pytest.mark.parametrize(("sees", "harm"), [("summary", ""), ("all", "<think>\nharm harm harm plan\n</think>\n\n")])
def test_helpful_reads_the_answer_and_safety_everything(checkpoint: Path, sees: Any, harm: str) -> None:
    reward = PreferenceModel(checkpoint=checkpoint, sees=sees)
    scores = [reward(PROMPT, response_of(text)) for text in TEXTS[:2]]
    assert scores[1] == pytest.approx(alone(checkpoint, ROW.format(harm + "hello")), abs=1e-5)
    assert (abs(scores[0] - scores[1]) < 1e-6) == (sees == "summary")


def test_one_checkpoint_may_be_read_in_two_ways(checkpoint: Path) -> None:
    both = [PreferenceModel(checkpoint=checkpoint, sees=sees) for sees in ("summary", "all")]  # type: ignore[arg-type]
    expected = [[reward(PROMPT, response_of(text)) for text in TEXTS] for reward in both]
    found = [reward.for_group(group(*TEXTS)) for reward in both]
    assert [[reward(PROMPT, response_of(text)) for text in TEXTS] for reward in found] == [
        pytest.approx(row, abs=1e-5) for row in expected
    ]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_batch_changes_no_score(checkpoint: Path, batch: int) -> None:
    single = PreferenceModel(checkpoint=checkpoint, sees="all")
    expected = [single(PROMPT, response_of(text)) for text in TEXTS]
    reward = replace(single, batch=batch).for_group(group(*TEXTS))
    assert [reward(PROMPT, response_of(text)) for text in TEXTS] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(TEXTS)


def test_a_probability_lies_between_0_and_1(checkpoint: Path) -> None:
    plain, squashed = (PreferenceModel(checkpoint=checkpoint, squash=squash) for squash in (False, True))
    for text in TEXTS:
        assert 0 < squashed(PROMPT, response_of(text)) < 1
        assert (squashed(PROMPT, response_of(text)) > 0.5) == (plain(PROMPT, response_of(text)) > 0)


def test_a_response_without_an_answer_is_read_whole(checkpoint: Path) -> None:
    reward = PreferenceModel(checkpoint=checkpoint)
    for text in ("<think> plan", "<think> plan </think>", ""):
        assert isinstance(reward(PROMPT, response_of(text)), float)


def test_it_scores_in_the_reward_process_and_says_its_version(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    version = content_hash(checkpoint)[0][:12]
    reward = PreferenceModel(checkpoint=checkpoint, version=version)
    with IsolatedScorer(RewardConfig({"helpful": reward}, time_limit_s=60.0, memory_limit_mb=8192)) as scorer:
        scores = scorer.score(group(*TEXTS))
    assert [score.total for score in scores] == pytest.approx([reward(PROMPT, response_of(t)) for t in TEXTS], abs=1e-5)
    assert f"version {version}, on cpu" in capfd.readouterr().err


def test_a_gpu_that_is_not_there_is_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    reward = PreferenceModel(checkpoint=checkpoint, device="cuda")
    reward.prepare()  # which may run where the GPU is not
    with pytest.raises(UserError, match=r"device: got 'cuda'; this process sees no GPU: cluster\.reward_gpus"):
        reward(PROMPT, response_of("hello"))


def test_what_is_no_reward_model_or_another_one_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="checkpoint: got None; must be the directory of a reward model"):
        PreferenceModel().prepare()
    with pytest.raises(UserError, match=r"version: got 'abc'; the reward model at .* is "):
        PreferenceModel(checkpoint=checkpoint, version="abc").prepare()
    with pytest.raises(UserError):
        PreferenceModel(checkpoint=tmp_path).prepare()
