"""A reward model: a scalar head on a checkpoint, trained on judged answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from framework.artifacts import RewardCheckpoint, read_json
from framework.bounds import bounded
from framework.data.tokenizer_files import load_tokenizer
from framework.graph.nodes import Runtime
from framework.objectives.objective import Objective
from framework.objectives.reward import PairwiseReward, PointwiseReward
from framework.stages.judged_training import JudgedConfig, JudgedInputs, JudgedTraining
from framework.stages.preferences import Kind


@dataclass(frozen=True)
@bounded
class RewardModelConfig(JudgedConfig):
    """Defaults: DeepSeek-R1's helpful reward model."""

    loss: Literal["pairwise", "sigmoid", "scalar"] = "pairwise"  # sigmoid: R1's safety model; scalar: labels to be met

    @property
    def kind(self) -> Kind:
        """What data it needs."""
        return "pairwise" if self.loss == "pairwise" else "pointwise"

    @property
    def objective(self) -> Objective[Any, Any]:
        """What is minimised."""
        return PairwiseReward() if self.loss == "pairwise" else PointwiseReward(self.loss)


@dataclass(frozen=True)
class TrainedRewardModel:
    """The reward model."""

    reward: RewardCheckpoint


@dataclass(frozen=True)
class RewardModel(JudgedTraining):
    """The stage: its steps follow from the data."""

    def run(self, inputs: JudgedInputs, runtime: Runtime) -> TrainedRewardModel:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        out = runtime.artifact_dir("reward")
        self.train(inputs, runtime, out)
        name_padding(out)
        return TrainedRewardModel(RewardCheckpoint(out))


def name_padding(checkpoint: Path) -> None:
    """Give config.json a padding token that ends no answer: transformers scores the last token that is not padding.

    A tokenizer that pads with its end token would have the token before it scored.
    """
    tokenizer, file = load_tokenizer(checkpoint), checkpoint / "config.json"
    ends = tokenizer.eos_token_id
    others = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    found = next((token for token in others if token is not None and token != ends), None)
    file.write_text(json.dumps({**read_json(file), "pad_token_id": found}, indent=2) + "\n")
