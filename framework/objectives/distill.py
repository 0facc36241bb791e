"""Distillation (DistilBERT, 1910.01108, section 3): a teacher's soft targets, masked tokens, the teacher's directions.

Dimensions: T tokens of a packed row, K predicted ones, V vocabulary, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, kl_div

from framework.bounds import NonNegativeFloat, PositiveFloat, bounded
from framework.models.packed_attention import SegmentLayout
from framework.objectives.mlm import MaskedLm, MaskedMicroBatch, forward_masked, masked_loss
from framework.types import LossOutput


@dataclass(frozen=True)
@bounded
class Distillation:
    """How the three parts are weighed. Defaults: the released training's (temperature 2; 5, 2 and 1)."""

    temperature: PositiveFloat = 2.0
    soft: NonNegativeFloat = 5.0
    masked: NonNegativeFloat = 2.0
    cosine: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class DistilledLm(MaskedLm):
    """soft T^2 KL(teacher || student) + masked L_mlm + cosine (1 - cos(h_teacher, h_student)).

    The first and the last are means over all tokens, as in the released training; the student sees what the teacher
    sees, hidden tokens included. Metrics besides those of `MaskedLm`: soft_loss (nats), cosine, scaled so that they
    are means over tokens.
    """

    teacher: Any  # of `models.masked_heads`, packed, without gradients
    weights: Distillation = Distillation()

    def loss(self, model: Any, micro: MaskedMicroBatch, layout: SegmentLayout | None) -> LossOutput:
        """The three parts of a row, divided by what the whole batch has of each."""
        weights, every_T = self.weights, torch.arange(len(micro.token_ids_T), device=micro.token_ids_T.device)
        student = forward_masked(model, micro, layout, every_T)
        with torch.no_grad():
            teacher = forward_masked(self.teacher.to(micro.token_ids_T.device), micro, layout, every_T)
        kept_K = micro.mask_T.nonzero().squeeze(-1)
        hard = masked_loss(student.logits_KV[kept_K], micro.targets_T[kept_K], None, replace(micro, pairs=1))
        ours, theirs = (output.logits_KV.float() / weights.temperature for output in (student, teacher))
        counted = float(bool(micro.sample_index_S)) / micro.tokens
        soft = kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="sum") * weights.temperature**2
        cosine = cosine_similarity(student.hidden_TH.float(), teacher.hidden_TH.float(), dim=-1)
        loss = weights.masked * hard.loss + counted * (weights.soft * soft + weights.cosine * (1 - cosine).sum())
        scale = counted * micro.predicted  # metrics are divided by the predicted tokens
        metrics = {"soft_loss": float(soft.detach()) * scale, "cosine": float(cosine.detach().sum()) * scale}
        return LossOutput(loss, {**hard.metrics, **metrics}, hard.count, hard.outputs)
