"""The reward of a reward model: its score of an answer, between 0 and 1.

R1 adds the score of its helpful model, which reads the summary alone, or of its safety model, which reads everything,
to the format reward of general prompts (R1 v2 section 3.2, eq. 10). The paper does not say on which scale; here it is
the sigmoid of the logit, so that it weighs as much as a rule. The model runs on the reward worker's CPU core, one
response at a time: right for the models of a laptop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from framework.bounds import bounded
from framework.data.chats import Chat
from framework.data.reasoning import Reasoned, split_reasoning
from framework.errors import UserError
from framework.rewards.base import Reward, RewardConfig
from framework.types import Prompt, Response


@dataclass(frozen=True, kw_only=True)
@bounded
class ModelScore(Reward):
    """Sigmoid of a reward model's logit. A response that is not in R1's form, or was cut off, scores 0.

    The model's tokenizer carries the template that its answers were in when it was trained.
    """

    checkpoint: Path | None = None  # a reward model's directory; None: the job's graph connects one
    reads: Literal["summary", "everything"] = "summary"

    def __call__(self, prompt: Prompt, response: Response) -> float:
        """Return a number in [0, 1]."""
        if self.checkpoint is None:
            raise UserError("checkpoint", None, "must name a reward model's directory")
        found = split_reasoning(prompt.opened + response.text)
        if found is None or response.finish_reason != "stop":
            return 0.0
        logit = _loaded(self.checkpoint).score(prompt, self._read(found))
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))

    def _read(self, found: Reasoned) -> str:
        return found.summary if self.reads == "summary" else str(found.message()["content"])

    def prepare(self) -> None:
        """Import what the model needs: some seconds."""
        import torch
        import transformers  # noqa: F401

        torch.set_num_threads(1)  # the process is forked: it must not have started any


class _Model:
    """A reward model in this process."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        from framework.data.chat_template import ChatTemplate
        from framework.data.tokenizer_files import load_tokenizer

        self._template = ChatTemplate(load_tokenizer(checkpoint))
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()

    def score(self, prompt: Prompt, answer: str) -> float:
        """Return the logit of the row that the model was trained on: prompt, answer, and the token that ends it."""
        import numpy as np
        import torch

        from framework.data.chat_encoding import encode_chat

        asked = prompt.messages or ({"role": "user", "content": prompt.text},)
        row = encode_chat(self._template, Chat(prompt.id, (*asked, {"role": "assistant", "content": answer})))
        ids_T = row.token_ids[: int(np.flatnonzero(row.learned)[-1]) + 1]
        with torch.no_grad():
            return float(self._model(input_ids=torch.tensor(ids_T[None], dtype=torch.int64)).logits[0, 0])


@cache
def _loaded(checkpoint: Path) -> _Model:
    return _Model(checkpoint)


def with_checkpoints(config: RewardConfig, found: Mapping[str, Path]) -> RewardConfig:
    """Return the rewards, each component named in `found` with that reward model.

    Raises UserError for one that is not configured, or is no ModelScore.
    """
    components = dict(config.components)
    for name, checkpoint in found.items():
        reward = components.get(name)
        if not isinstance(reward, ModelScore):
            allowed = f"a reward model is connected to it, so it must be a {ModelScore.__name__}"
            raise UserError(f"reward.components.{name}", type(reward).__name__, allowed)
        components[name] = replace(reward, checkpoint=checkpoint)
    return replace(config, components=components)


def rule_names(config: RewardConfig) -> tuple[str, ...]:
    """Return the components that are no reward models."""
    return tuple(name for name, reward in config.components.items() if not isinstance(reward, ModelScore))
