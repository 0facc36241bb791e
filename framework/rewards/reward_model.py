"""Reward model as a reward: a trained scalar head reads a response, in batches, in the reward worker's process."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from framework.artifacts import RewardCheckpoint, content_hash
from framework.bounds import PositiveInt, bounded
from framework.data.chat_encoding import encode_chat
from framework.data.chat_shards import Chat
from framework.data.chat_template import ChatTemplate
from framework.data.reasoning import split_reasoning
from framework.data.tokenizer_files import load_tokenizer
from framework.errors import UserError
from framework.models.scalar_head import check_score
from framework.rewards.base import Reward
from framework.types import Int32, Prompt, Response, ResponseGroup

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
@bounded
class PreferenceModel(Reward):
    """The score that a reward model gives a response (R1v2 eq. 9, Reward_RM).

    R1's helpful model reads the answer behind the reasoning alone, its safety model the reasoning too (B.3). Both are
    trained by `framework.stages.reward_model`; any ...ForSequenceClassification with one label and a chat template
    serves. A response whose answer cannot be told from its reasoning is read whole.

    A group's responses are read together, `batch` at a time; `reward.time_limit_s` of its first response covers all. On
    a GPU (`device: cuda`, `cluster.reward_gpus`: each reward worker's own) set `reward.memory_limit_mb=0`: the driver
    reserves more address space than any limit.
    """

    checkpoint: Path | None = None  # of the reward model
    version: str = ""  # how its content hash begins, where another one must not slip in
    sees: Literal["summary", "all"] = "summary"
    squash: bool = False  # sigmoid: a safety model's score as a probability
    device: str = "cpu"
    batch: PositiveInt = 8

    def for_group(self, group: ResponseGroup) -> PreferenceModel:
        """Score all responses of the group, so that each costs a share of a batch."""
        model = _loaded(self)
        rows = [model.encode(group.prompt, self._answer(group.prompt, response)) for response in group.responses]
        scores = [
            score
            for start in range(0, len(rows), self.batch)
            for score in model.scores(rows[start : start + self.batch])
        ]
        keys = ((group.prompt.id, response.text) for response in group.responses)
        model.known[self.sees] = dict(zip(keys, scores, strict=True))  # a process scores one group at a time
        return self

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return the model's score: any finite number, or one in [0, 1] with `squash`."""
        model = _loaded(self)
        score = model.known.get(self.sees, {}).get((prompt.id, response.text))
        if score is None:
            (score,) = model.scores([model.encode(prompt, self._answer(prompt, response))])
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, score)))) if self.squash else score

    def prepare(self) -> None:
        """Check the checkpoint, say which it is, and load it, unless its device is one that no fork may inherit."""
        directory = self._directory()
        RewardCheckpoint(directory).check()
        check_score(directory)
        found = content_hash(directory)[0]
        if not found.startswith(self.version):
            raise UserError("version", self.version, f"the reward model at {directory} is {found[:12]}")
        print(f"reward model {directory}: version {found[:12]}, on {self.device}", file=sys.stderr, flush=True)
        if self.device == "cpu":
            _loaded(self)

    def _directory(self) -> Path:
        if self.checkpoint is None:
            raise UserError("checkpoint", None, "must be the directory of a reward model")
        return Path(self.checkpoint)

    def _answer(self, prompt: Prompt, response: Response) -> str:
        text = prompt.opened + response.text
        found = split_reasoning(text)
        if self.sees == "all":
            return text if found is None else str(found.message()["content"])
        if found is not None:
            return found.summary
        return text.rpartition("</think>")[2].strip() or text


class _Model:
    """A loaded reward model with the template that its rows were made with."""

    def __init__(self, directory: Path, device: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                "device", device, "this process sees no GPU: cluster.reward_gpus gives reward workers theirs"
            )
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(directory).eval().to(device)
        tokenizer = load_tokenizer(directory)
        if not tokenizer.chat_template:
            raise UserError("checkpoint", str(directory), "its tokenizer must have the chat template that it reads by")
        self._template, self._end = ChatTemplate(tokenizer), tokenizer.eos_token_id
        self._device = device
        # what is read -> (prompt id, response) -> score, of the group at hand
        self.known: dict[str, dict[tuple[str, str], float]] = {}

    def encode(self, prompt: Prompt, answer: str) -> Int32:
        """Return prompt and answer up to the token that ends it, [T]: as in training."""
        chat = Chat(
            prompt.id, (*prompt.conversation, {"role": "assistant", "content": answer}), where=f"prompt {prompt.id}"
        )
        try:
            encoded = encode_chat(self._template, chat)
        except UserError:  # an answer that no conversation of the template can hold, as a policy may well write
            given = self._template.prompt(prompt.conversation, where=chat.where).token_ids
            return np.array([*given, *self._template.control.encode(answer), self._end], np.int32)
        return encoded.token_ids[: int(encoded.learned.nonzero()[0][-1]) + 1]

    def scores(self, rows: Sequence[Int32]) -> list[float]:
        """Return the score at each row's last token."""
        import torch

        if not rows:
            return []
        lengths_B = torch.tensor([len(row) for row in rows], device=self._device)
        ids_BT = torch.zeros(len(rows), int(lengths_B.max()), dtype=torch.long, device=self._device)
        for place, row in enumerate(rows):
            ids_BT[place, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        mask_BT = torch.arange(ids_BT.shape[1], device=self._device)[None] < lengths_B[:, None]
        with torch.inference_mode():
            body = getattr(self._model, self._model.base_model_prefix)
            hidden_BTH: torch.Tensor = body(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state
            last_BH = hidden_BTH[torch.arange(len(rows), device=self._device), lengths_B - 1]
            scores_B: list[float] = self._model.score(last_BH)[:, 0].float().tolist()
        return scores_B


_models: dict[
    tuple[str, str, int], _Model
] = {}  # a CPU's is loaded once and shared by forks; a GPU's is a process's own


def _loaded(reward: PreferenceModel) -> _Model:
    directory = reward._directory()
    key = (str(directory), reward.device, 0 if reward.device == "cpu" else os.getpid())
    if key not in _models:
        _models[key] = _Model(directory, reward.device)
    return _models[key]
