"""Initial weights that depend on the seed and on names alone, so that any rank can make any part of them.

Each parameter, and each routed expert of one, is drawn by a generator of its own: N(0, initializer_range) for matrices
and embeddings, one for norms, zero for biases. Where GPT-2's papers say so, what is added to the residual stream is
smaller by 1/sqrt(2 layers), two additions a layer (GPT-2 section 2.3; Megatron-LM, 1909.08053, section 4.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

RESIDUAL = {"gpt2": "c_proj.weight", "megatron-bert": "output.dense.weight"}  # the end of their names, by model_type


def draw_weights(target_N: torch.Tensor, first: int, name: str, shape: Sequence[int], model: Any, seed: int) -> None:
    """Fill `target_N` with the flat elements `first` to `first + N` of parameter `name`, which is `shape` as a whole.

    `model` is the Hugging Face model that the parameter is of. No more than one expert, or a parameter that has none,
    is drawn at a time.
    """
    import torch

    if len(shape) == 1:
        target_N.fill_(0.0 if name.endswith("bias") else 1.0)
        return
    padding = model.get_input_embeddings().padding_idx if name == "model.embed_tokens.weight" else None
    scale = model.config.initializer_range
    if (end := RESIDUAL.get(model.config.model_type)) is not None and name.endswith(end):
        scale /= (2 * model.config.num_hidden_layers) ** 0.5
    parts = shape[0] if len(shape) == 3 else 1  # only experts are fused to three dimensions
    size, last = prod(shape) // parts, first + len(target_N)
    for part in range(first // size, min(parts, -(-last // size))):
        values_N = _normal(f"{seed} {name} {part}", size)
        if padding is not None:
            values_N.reshape(*shape)[padding] = 0.0
        values_N *= scale
        start, stop = max(first, part * size), min(last, (part + 1) * size)
        target_N[start - first : stop - first].copy_(
            torch.from_numpy(values_N[start - part * size : stop - part * size])
        )


def _normal(key: str, size: int) -> npt.NDArray[np.float32]:
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest())
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
