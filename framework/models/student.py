"""DistilBERT's first weights: every second layer of its teacher (1910.01108, section 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

_OUTSIDE = {
    "bert.embeddings.": "distilbert.embeddings.",
    "cls.predictions.transform.dense.": "vocab_transform.",
    "cls.predictions.transform.LayerNorm.": "vocab_layer_norm.",
    "cls.predictions.bias": "vocab_projector.bias",
}
_INSIDE = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")


def copy_teacher(teacher: Mapping[str, torch.Tensor], layers: int, student: Any) -> int:
    """Copy into a DistilBertForMaskedLM from the weights of a BertForPreTraining of `layers` layers; returns how many.

    Layer i of the student is layer i * (layers // its own) of the teacher. Raises ValueError for a parameter of the
    student that the teacher does not have in its shape.
    """
    stride = layers // student.config.n_layers
    found = {}
    for name, tensor in teacher.items():
        if match := _LAYER.fullmatch(name):
            number, part, kind = int(match[1]), match[2], match[3]
            if number % stride == 0:
                found[f"distilbert.transformer.layer.{number // stride}.{_INSIDE[part]}.{kind}"] = tensor
        for old, new in _OUTSIDE.items():
            if name.startswith(old):
                found[new + name.removeprefix(old)] = tensor
    copied = 0
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name not in found or found[name].shape != parameter.shape:
                raise ValueError(f"the teacher has no {name} of shape {tuple(parameter.shape)}")
            parameter.copy_(found[name])
            copied += 1
    return copied
