"""DPO (2305.18290): the policy's own log-ratio to its reference is the reward that Bradley-Terry is fitted with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from framework.algorithms import preference_loss
from framework.bounds import bounded
from framework.objectives.preference import Answers, PreferenceMicroBatch, PreferenceObjective


@dataclass(frozen=True, kw_only=True)
@bounded
class Dpo(PreferenceObjective):
    """Mean over pairs of -log sigmoid(beta (log pi/pi_ref of the better answer - that of the worse)) (eq. 7).

    beta is the paper's 0.1; DeepSeek LLM (2401.02954 section 4) does not give its own.
    """

    def loss(self, answers: Answers, micro: PreferenceMicroBatch) -> torch.Tensor:
        """Sum over pairs."""
        better_P, worse_P = answers.ratios_S[micro.pairs_P2].unbind(-1)
        return preference_loss.dpo(better_P - worse_P, self.beta).sum()
