"""Multi-token prediction beside a trainer's own loss: its inputs to the forward, its loss, its metrics.

Dimensions: K positions that a depth learns at, D depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from framework.algorithms.lm_loss import MtpTargets, add_mtp_loss, mtp_loss, mtp_targets
from framework.engines.deepspeed_engine import DETACHED_SCALE, TrainingEngine
from framework.models.output_head import Asked, scores_of
from framework.models.sequence_parallel import SequenceShard
from framework.types import MicroBatch


class MtpStep:
    """One optimizer step's micro-batches in turn: `inputs`, the forward, `loss`. Does nothing where D is 0."""

    def __init__(self, engine: TrainingEngine) -> None:
        self._engine = engine
        self._coefficient = engine.mtp_coef * (DETACHED_SCALE if engine.config.mtp_detached else 1.0)
        self._sums = torch.zeros(engine.mtp_depths, 3, dtype=torch.float64)
        self._targets: list[MtpTargets] = []

    def inputs(self, micro: MicroBatch, shard: SequenceShard | None = None) -> dict[str, Any]:
        """Return what the model's forward takes besides; `shard`: this rank's part of the row, if it is spread."""
        depths = self._engine.mtp_depths
        if not depths:
            return {}
        self._targets = mtp_targets(micro.targets_T, micro.mask_T, micro.segment_lengths_S, depths)
        more: dict[str, Any] = {"mtp_detached": self._engine.config.mtp_detached}
        if shard is not None:  # the neighbour's first tokens, as every rank of the group knows the whole row
            self._targets = [t.within(shard.tokens) for t in self._targets]
            # Behind the row's end they are those of its start, as in a row that is not spread: routers see them.
            ahead_D = torch.arange(depths, device=micro.token_ids_T.device) + shard.tokens.stop
            more["mtp_ahead"] = micro.token_ids_T[ahead_D % len(micro.token_ids_T)][None]
        more["mtp_positions"] = [t.positions_K for t in self._targets]
        return more | {"asked": [Asked(t.tokens_K) for t in self._targets]}

    def add(self, main: torch.Tensor, scored: Sequence[torch.Tensor] | None, divisor: float) -> torch.Tensor:
        """Return `main` with the modules' loss added (`mtp_logits` of the forward; L_k is a sum over `divisor`)."""
        pairs = zip(scored or (), self._targets, strict=True)
        outputs = [mtp_loss(scores_of(found), t.weights_K) for found, t in pairs]
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
