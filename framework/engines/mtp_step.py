"""Multi-token prediction beside a trainer's own loss: its inputs to the forward, its loss, its metrics.

Dimensions: T tokens of a (flattened) row, S its segments, K positions that a depth learns at, V vocabulary, D depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from framework.algorithms.lm_loss import MtpTargets, add_mtp_loss, mtp_loss, mtp_targets
from framework.engines.deepspeed_engine import DETACHED_SCALE, TrainingEngine


class MtpStep:
    """One optimizer step's micro-batches in turn: `inputs`, the forward, `loss`. Does nothing where D is 0."""

    def __init__(self, engine: TrainingEngine) -> None:
        self._engine = engine
        self._coefficient = engine.mtp_coef * (DETACHED_SCALE if engine.config.mtp_detached else 1.0)
        self._sums = torch.zeros(engine.mtp_depths, 3, dtype=torch.float64)
        self._targets: list[MtpTargets] = []

    def inputs(
        self, targets_T: torch.Tensor, weights_T: torch.Tensor, segment_lengths_S: torch.Tensor
    ) -> dict[str, Any]:
        """Return what the model's forward takes besides, given the main model's targets and weights."""
        if not self._engine.mtp_depths:
            return {}
        self._targets = mtp_targets(targets_T, weights_T, segment_lengths_S, self._engine.mtp_depths)
        return {
            "mtp_positions": [t.positions_K for t in self._targets],
            "mtp_detached": self._engine.config.mtp_detached,
        }

    def add(self, main: torch.Tensor, logits: Sequence[torch.Tensor] | None, divisor: float) -> torch.Tensor:
        """Return `main` with the modules' loss added ([K, V] logits of each depth; L_k is a sum over `divisor`)."""
        outputs = [mtp_loss(logits_KV, t) for logits_KV, t in zip(logits or (), self._targets, strict=True)]
        for k, output in enumerate(outputs):
            row = [output.metrics["nll"], output.metrics["right"], output.count]
            self._sums[k] += torch.tensor(row, dtype=torch.float64)
        return add_mtp_loss(main, [output.loss / divisor for output in outputs], self._coefficient)

    def metrics(self) -> dict[str, float]:
        """Return each depth's mean loss in nats and the share of its first choices that were right (a collective)."""
        if not self._engine.mtp_depths:
            return {}
        found: dict[str, float] = {}
        for k, (nll, right, tokens) in enumerate(self._engine.sum_over_ranks(self._sums.to(self._engine.device)), 1):
            learned = max(float(tokens), 1.0)
            found |= {f"mtp_loss_{k}": float(nll) / learned, f"mtp_accuracy_{k}": float(right) / learned}
        return found
