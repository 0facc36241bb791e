"""IPO (2310.12036): the gap of log-ratios is drawn to a finite target, so that certain pairs do not drive it on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from framework.algorithms import preference_loss
from framework.bounds import bounded
from framework.objectives.preference import Answers, PreferenceMicroBatch, PreferenceObjective


@dataclass(frozen=True, kw_only=True)
@bounded
class Ipo(PreferenceObjective):
    """Mean over pairs of (gap - 1 / (2 beta))^2 (eq. 17, whose tau is beta).

    Log-ratios are means over an answer's tokens, as TRL has them by the authors' word: of sums the target would ask
    more of short answers.
    """

    def scores(self, answers: Answers) -> torch.Tensor:
        """Log-ratios a token."""
        return answers.ratios_S / answers.tokens_S.clamp_min(1)

    def loss(self, answers: Answers, micro: PreferenceMicroBatch) -> torch.Tensor:
        """Sum over pairs."""
        better_P, worse_P = self.scores(answers)[micro.pairs_P2].unbind(-1)
        return preference_loss.ipo(better_P - worse_P, self.beta).sum()
