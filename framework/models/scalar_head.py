"""A causal model with a scalar head in place of its output head: transformers' ...ForSequenceClassification, one label.

On disk and in transformers it is that class as it is. In training the forward gives a score at every position that is
asked for (transformers' gives the last one alone), so that packed rows of many answers run at once, and a value
model's tokens too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from framework.errors import UserError

HEAD = "score.weight"
SUFFIX = "ForSequenceClassification"


class _TokenScores:
    """Comes before transformers' class: another forward, nothing else."""

    def forward(
        self: Any, input_ids: torch.Tensor, logits_to_keep: slice | torch.Tensor = slice(None), **inputs: Any
    ) -> Any:
        """`logits` [B, K, 1] at the positions to keep (int64 [K]; all by default)."""
        from transformers.modeling_outputs import TokenClassifierOutput

        hidden_BTH = getattr(self, self.base_model_prefix)(input_ids, **inputs).last_hidden_state
        return TokenClassifierOutput(logits=self.score(hidden_BTH[:, logits_to_keep]))


def has_scalar_head(config: Any) -> bool:
    """Whether a Hugging Face config is of such a model."""
    return any(name.endswith(SUFFIX) for name in getattr(config, "architectures", None) or ())


def check_scalar_head(model_type: str) -> None:
    """Raise UserError for a family of which transformers has no such class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    if model_type not in CLASSES:
        allowed = f"has no reward model: transformers knows no {SUFFIX} of it"
        raise UserError("base", f"model_type={model_type}", allowed)


def check_score(directory: Path) -> None:
    """Raise UserError, from headers alone, unless a checkpoint has such a head, of one number."""
    from framework.models.public_layout import stored_tensors

    where, found = f"{directory}: {HEAD}", stored_tensors(directory)
    if HEAD not in found:
        raise UserError(where, "no such tensor", "a critic begins with a reward model's head")
    if found[HEAD].shape[0] != 1:
        raise UserError(where, found[HEAD].shape, "must give one number: a classifier of several labels is no reward")


def with_scalar_head(config: Any) -> Any:
    """Turn the config of a causal model into one of the same model with a scalar head, without MTP modules."""
    check_scalar_head(config.model_type)
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    config.architectures, config.num_labels = [CLASSES[type(config)].__name__], 1
    for key in ("num_nextn_predict_layers", "num_mtp_layers"):
        if getattr(config, key, None):
            setattr(config, key, 0)
    return config


def scalar_head_class(config: Any) -> Any:
    """Return the class to train: transformers', under its name, with the forward above."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSES

    return _derived(CLASSES[type(config)])


@cache
def _derived(kind: Any) -> Any:
    return type(kind.__name__, (_TokenScores, kind), {"__module__": kind.__module__})
