"""Dropout is switched off wherever a model trains or answers here."""

from __future__ import annotations

from torch import nn


def switch_dropout_off(model: nn.Module) -> None:
    """GPT-2 and others of its time ask for some: a policy must be the one that the sampler sampled from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
