"""ORPO (2403.07691): fine-tuning on the better answers with a penalty on the odds of the worse ones; no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from framework.algorithms import preference_loss
from framework.bounds import bounded
from framework.objectives.preference import Answers, PreferenceMicroBatch, PreferenceObjective


@dataclass(frozen=True, kw_only=True)
@bounded
class Orpo(PreferenceObjective):
    """Mean nll of the tokens of better answers + beta times the mean over pairs of the odds ratio's loss (eq. 6).

    beta is the paper's lambda. As in its authors' code prompts are learned too, and the odds are those of an answer's
    mean token.
    """

    reference: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = True

    def scores(self, answers: Answers) -> torch.Tensor:
        """Logprobs a token."""
        return answers.logprobs_S / answers.tokens_S.clamp_min(1)

    def loss(self, answers: Answers, micro: PreferenceMicroBatch) -> torch.Tensor:
        """Sum over pairs; the nll is scaled so that what divides it makes a mean over tokens of it."""
        better_P, worse_P = self.scores(answers)[micro.pairs_P2].unbind(-1)
        times_T = micro.desirable_S.repeat_interleave(micro.segment_lengths_S).to(answers.logprobs_T.dtype)
        nll = -(times_T * answers.logprobs_T).sum()
        return micro.share * nll + self.beta * preference_loss.orpo(better_P, worse_P).sum()
