"""KTO (2402.01306): single answers that are desirable or not, each against what the policy says of unrelated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from framework.algorithms import preference_loss
from framework.bounds import PositiveFloat, bounded
from framework.objectives.preference import Answers, Kind, PreferenceMicroBatch, PreferenceObjective


@dataclass(frozen=True, kw_only=True)
@bounded
class Kto(PreferenceObjective):
    """Mean over answers of w (1 - sigmoid(beta (+-(log pi/pi_ref - z_0)))) (eq. 8).

    z_0 is the mean log-ratio of answers to other prompts, no less than 0, over the whole batch: no split of it shows.
    """

    data: Literal["pairs", "labels"] = "pairs"  # pairs: the better answer is desirable, the worse one not
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0

    unrelated: ClassVar[bool] = True
    both_sides: ClassVar[bool] = True

    @property
    def kind(self) -> Kind:
        """What data it needs."""
        return "pairwise" if self.data == "pairs" else "pointwise"

    def loss(self, answers: Answers, micro: PreferenceMicroBatch) -> torch.Tensor:
        """Sum over answers, each as often as it was judged."""
        good_S, bad_S = preference_loss.kto(answers.ratios_S, micro.kl, self.beta)
        good, bad = (micro.desirable_S * good_S).sum(), (micro.undesirable_S * bad_S).sum()
        return self.desirable_weight * good + self.undesirable_weight * bad
