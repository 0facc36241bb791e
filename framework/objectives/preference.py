"""What every objective on preferences has: answers' log-probabilities, a reference to compare with, what is better.

An objective is a file beside this one: a frozen dataclass whose fields are its paper's settings, with `loss` over the
answers of one packed row and `scores`, by which it takes an answer for better. `preference_rows` trains it.

Dimensions: S answers of a packed row, P pairs of them, T its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from framework.bounds import PositiveFloat, bounded
from framework.types import MicroBatch

Kind = Literal["pairwise", "pointwise"]


@dataclass(frozen=True)
class PreferenceMicroBatch(MicroBatch):
    """Answers of which some are better than others; places are those of segments in the row.

    Of three answers the first is better than the others: pairs (0 1) (0 2), desirable 2 0 0, undesirable 0 1 1.
    """

    answers_T: torch.Tensor  # float32, 1 where targets_T is the answer's
    pairs_P2: torch.Tensor  # int64, better and worse
    desirable_S: torch.Tensor  # float32, how often the answer is the better one; of labelled answers 1 or 0
    undesirable_S: torch.Tensor  # float32, how often the worse one
    unrelated_S: torch.Tensor  # float32, 1 for an answer to another prompt
    reference_S: torch.Tensor  # float64, the reference's log-probability of the answer
    share: float  # pairs over tokens of better answers, of the whole batch
    kl: float = 0.0  # mean over the whole batch of log(pi / pi_ref) of unrelated answers, at least 0


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of a row's answers, in nats; `logprobs_S` and `logprobs_T` are differentiable."""

    logprobs_T: torch.Tensor  # of every target that the row's mask marks, 0 elsewhere
    logprobs_S: torch.Tensor  # sums over each answer
    tokens_S: torch.Tensor
    ratios_S: torch.Tensor  # log(pi / pi_ref), where there is a reference


@dataclass(frozen=True, kw_only=True)
@bounded
class PreferenceObjective:
    """Base of the objectives."""

    beta: PositiveFloat = 0.1

    reference: ClassVar[bool] = True  # it compares with the model that training began with
    unrelated: ClassVar[bool] = False  # it needs answers to other prompts too
    whole_rows: ClassVar[bool] = False  # it learns better answers with their prompts
    both_sides: ClassVar[bool] = False  # each answer of a pair is an example of its own

    @property
    def kind(self) -> Kind:
        """What data it needs."""
        return "pairwise"

    def scores(self, answers: Answers) -> torch.Tensor:
        """Return what the objective takes for each answer's reward, [S]."""
        return self.beta * answers.ratios_S

    def loss(self, answers: Answers, micro: PreferenceMicroBatch) -> torch.Tensor:
        """Return the sum over pairs (or over answers) of the row, to be divided by how many the whole batch has."""
        raise NotImplementedError
