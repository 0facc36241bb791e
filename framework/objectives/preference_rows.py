"""An objective on preferences as the trainer runs it: answers packed, those to one prompt in one row.

Dimensions: S answers of a packed row, P pairs of them, T its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from framework.algorithms.policy_loss import segment_sums
from framework.data.judged import Judged
from framework.models.packed_attention import SegmentLayout, packed_logprobs
from framework.objectives.judged_rows import extended, name_of, pack_judged, pairs_in
from framework.objectives.objective import BatchSize, Objective, Share
from framework.objectives.preference import Answers, PreferenceMicroBatch, PreferenceObjective
from framework.types import LossOutput


@dataclass(frozen=True)
class PreferenceRows(Objective[Sequence[Judged], PreferenceMicroBatch]):
    """`preference` on packed answers. Where it needs unrelated answers, the last row of each prompt is one.

    Metrics are means over pairs: accuracy (of the better answer's score being higher), score_gap, score_better,
    score_worse; over labelled answers: accuracy of the score's sign. kl, where unrelated answers give it.
    """

    preference: PreferenceObjective

    shares_prefixes: ClassVar[bool] = True
    scores_tokens: ClassVar[bool] = True

    @property
    def two_passes(self) -> bool:
        """Unrelated answers of the whole batch come before the loss of any."""
        return self.preference.unrelated

    def size(self, batch: Sequence[Judged]) -> BatchSize:
        """The mean is over pairs, or over answers where they are judged alone."""
        pairs, labels = (sum(len(getattr(judged, name)) for judged in batch) for name in ("pairs", "labels"))
        tokens = [len(row) - start for one in batch for row, start in zip(one.rows, one.starts, strict=True)]
        return BatchSize(len(tokens), float(sum(tokens)), (1 + self.preference.both_sides) * pairs or labels)

    def micro_batches(self, batch: Sequence[Judged], share: Share) -> list[PreferenceMicroBatch]:
        """Pack the answers, those of a prompt together."""
        flat = [(judged, place) for judged in batch for place in range(len(judged.rows))]
        answers = [_answer(judged, place) for judged, place in flat]
        share_of = _pairs_a_token(batch) if self.preference.whole_rows else 0.0
        none = math.nan if self.preference.reference else 0.0
        rows = []
        for micro in pack_judged(batch, share, answers):
            pairs_P2 = torch.tensor([pair[:2] for pair in pairs_in(batch, micro)], dtype=torch.int64).reshape(-1, 2)
            own = [flat[index] for index in micro.sample_index_S]
            segments = len(micro.segment_lengths_S)  # one that nothing is trained on in a placeholder
            good_S, bad_S = (torch.bincount(side_P, minlength=segments).float() for side_P in pairs_P2.unbind(-1))
            # what is not known yet must not train
            known = [judged.reference[place] if judged.reference else none for judged, place in own]
            if self.preference.kind == "pointwise":
                labels = [judged.labels[place : place + 1] for judged, place in own]
                good_S = torch.tensor([float(any(label > 0.5 for label in found)) for found in labels])
                bad_S = torch.tensor([float(any(label <= 0.5 for label in found)) for found in labels])
            last = [self.preference.unrelated and place + 1 == len(judged.rows) for judged, place in own]
            per_segment = (_filled(values_S, segments) for values_S in (good_S, bad_S, torch.tensor(last).float()))
            more = (
                micro.mask_T,
                pairs_P2,
                *per_segment,
                _filled(torch.tensor(known, dtype=torch.float64), segments),
                share_of,
            )
            rows.append(self._with_prompts(extended(PreferenceMicroBatch, micro, *more)))
        return rows

    def loss(self, model: Any, micro: PreferenceMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """The preference's."""
        answers = answers_of(model, micro, layout)
        scores_S, desirable_S = self.preference.scores(answers).detach(), micro.desirable_S
        if self.preference.kind == "pairwise":
            better_P, worse_P = scores_S[micro.pairs_P2].unbind(-1)
            right_P, count = (better_P > worse_P).to(scores_S.dtype), float(len(micro.pairs_P2))
            named = {"accuracy": right_P, "score_gap": better_P - worse_P, "score_better": better_P}
            sums = {name: float(values_P.sum()) for name, values_P in {**named, "score_worse": worse_P}.items()}
        else:
            count = float((desirable_S + micro.undesirable_S).sum())
            sums = {"accuracy": float(torch.where(scores_S > 0, desirable_S, micro.undesirable_S).sum())}
        if self.preference.unrelated:
            sums["kl"] = micro.kl * count
        return LossOutput(self.preference.loss(answers, micro), sums, count, {"logprobs": answers.logprobs_S})

    def first_sums(self, model: Any, micro: PreferenceMicroBatch, layout: SegmentLayout | None) -> torch.Tensor:
        """Sum of the log-ratios of unrelated answers, and their number, [2] float64."""
        ratios_S = answers_of(model, micro, layout).ratios_S.double()
        return torch.stack([(micro.unrelated_S * ratios_S).sum(), micro.unrelated_S.sum().double()])

    def with_sums(self, micro: PreferenceMicroBatch, sums: Sequence[float]) -> PreferenceMicroBatch:
        """With the mean over the whole batch, at least 0."""
        total, count = sums
        return replace(micro, kl=max(0.0, total / max(count, 1.0)))

    def name(self, batch: Sequence[Judged], index: int) -> str:
        """By the prompt's place."""
        return name_of(batch, index)

    def _with_prompts(self, micro: PreferenceMicroBatch) -> PreferenceMicroBatch:
        """Mark every token of better answers' rows, where they are learned whole."""
        if not self.preference.whole_rows:
            return micro
        whole_T = (micro.desirable_S > 0).float().repeat_interleave(micro.segment_lengths_S)
        whole_T[micro.segment_lengths_S.cumsum(0) - 1] = 0  # a row's last token predicts nothing
        return replace(micro, mask_T=torch.maximum(micro.mask_T, whole_T))


def answers_of(model: Any, micro: PreferenceMicroBatch, layout: SegmentLayout | None = None) -> Answers:
    """Run the model on a row and sum what it says over each answer."""
    logprobs_T = packed_logprobs(model, micro, layout=layout).logprobs_T
    logprobs_S = segment_sums(logprobs_T * micro.answers_T.to(logprobs_T.dtype), micro)
    tokens_S = segment_sums(micro.answers_T.to(logprobs_T.dtype), micro)
    return Answers(logprobs_T, logprobs_S, tokens_S, logprobs_S - micro.reference_S.to(logprobs_S.dtype))


def _answer(judged: Judged, place: int) -> Any:
    return (np.arange(len(judged.rows[place])) >= judged.starts[place]).astype(np.int32)


def _pairs_a_token(batch: Sequence[Judged]) -> float:
    """Pairs over the tokens that their better answers' rows predict, counted once a pair."""
    lengths = [len(judged.rows[better]) - 1 for judged in batch for better, _, _ in judged.pairs]
    return len(lengths) / max(sum(lengths), 1)


def _filled(values_S: torch.Tensor, segments: int) -> torch.Tensor:
    return values_S if len(values_S) == segments else torch.zeros(segments, dtype=values_S.dtype)


def reference_of(model: Any, micro: PreferenceMicroBatch, layout: SegmentLayout | None) -> dict[int, float]:
    """Return each answer's log-probability under the model, by its place: a measure for `Trainer.measure`."""
    logprobs = answers_of(model, micro, layout).logprobs_S.tolist()
    return dict(zip(micro.sample_index_S, logprobs, strict=False))  # a placeholder's segment is no answer
