"""A learner's turn is over: what its engine keeps on the GPU moves to host memory, and back for its next turn.

DeepSpeed does it for ZeRO-2, and for ZeRO-1 in float32: its optimizer of ZeRO-1 in bfloat16 cannot leave. Under ZeRO-3
it moves optimizer states of its own FusedAdam alone, so those of torch's AdamW, and the float32 weights that they
belong to, are moved here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from framework.engines.device import on_gpu


class Turn:
    """Whether a deepspeed.DeepSpeedEngine has its GPU. Both verbs are collective under ZeRO-3."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._away = engine, False

    def offload(self) -> None:
        """Leave: weights, gradients and optimizer states go to host memory."""
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

        if self._away:
            return
        self._away, pinned = True, on_gpu()
        if self._engine.zero_optimization_stage() < 3:
            self._engine.offload_states(pin_memory=pinned)
            return
        moved = [State.lp_params, State.lp_grads, State.contiguous_grad_buffer]
        self._engine.offload_states(moved, pin_memory=pinned)
        _move(self._engine, torch.device("cpu"))

    def reload(self) -> None:
        """Come back, if away."""
        if not self._away:
            return
        self._away = False
        self._engine.reload_states()
        if self._engine.zero_optimization_stage() == 3:
            _move(self._engine, self._engine.device)


def _move(engine: Any, device: torch.device) -> None:
    for tensor in _optimizer_tensors(engine.optimizer):
        tensor.data = tensor.data.to(device)
    if device.type == "cpu" and on_gpu():
        torch.cuda.empty_cache()


def _optimizer_tensors(optimizer: Any) -> Iterator[torch.Tensor]:
    """Float32 weights and the moments of ZeRO-3; steps stay where they are."""
    yield from optimizer.fp32_partitioned_groups_flat
    for state in optimizer.optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value) and value.dim())
