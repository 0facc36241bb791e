"""Next-token training (pretraining, SFT rows) of one rank under DeepSpeed.

Dimensions: B rows, T tokens of a row, L MoE layers, E routed experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from framework.algorithms.balance import auxiliary_losses, sequence_balance_loss
from framework.algorithms.lm_loss import lm_loss
from framework.data.packing import pack_documents, to_device
from framework.engines.checkpoint import export_hf, load_state, save_state
from framework.engines.deepspeed_engine import DeepSpeedConfig, TrainingEngine
from framework.engines.finite import name_samples, poisoned
from framework.engines.mtp_step import MtpStep
from framework.models.packed_attention import SegmentLayout, use_packed_attention
from framework.types import Int32, MicroBatch, StepResult


class Rows(Protocol):
    """A global batch [B, T] of token ids (int64): a tensor, or rows that are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """B, T."""
        ...

    def __getitem__(self, chosen: list[int]) -> torch.Tensor:
        """Return some rows."""
        ...


@dataclass(frozen=True)
class _Micro:
    """One forward's worth of tokens on this rank; S sequences, N tokens in all."""

    inputs: dict[str, Any]  # of the model
    targets_N: torch.Tensor
    weights_N: torch.Tensor  # 1 where the target is learned
    lengths_S: torch.Tensor  # of the sequences that the balance losses are defined on
    names: tuple[str, ...]  # of its sequences in the step's batch, for errors; empty: a placeholder to keep in step

    @property
    def n_sequences(self) -> int:
        """Sequences of the global batch that it holds."""
        return len(self.names)


class DeepSpeedTrainer:
    """Causal language-model training with the published schedule, bias update and balance losses.

    A trainer takes whole rows (pretraining), or with `isolated` documents that do not see each other (fine-tuning).
    """

    def __init__(self, model: nn.Module, config: DeepSpeedConfig, isolated: bool = False) -> None:
        if isolated:
            use_packed_attention(model)
        self.isolated = isolated
        self.engine = TrainingEngine(model, config)

    def train_minibatch(self, rows_BT: Rows, mask_BT: torch.Tensor | None = None) -> StepResult:
        """One optimizer step on the global batch `rows_BT` (the same on every rank, which takes its share).

        Position t predicts t+1; `mask_BT` [B, T] is 1 where the token *at* that position is a target (default: all).
        Rows are not masked across documents (DeepSeek-V3 §4.1). The loss is the mean over all trained tokens.
        Metrics: loss (nats per token), grad_norm, lr, tokens; balance_loss (as weighted in the sum) when it is on;
        mtp_loss_k (nats) and mtp_accuracy_k of each depth of multi-token prediction.
        """
        n_rows, length = rows_BT.shape
        tokens = float(n_rows * (length - 1) if mask_BT is None else mask_BT[:, 1:].sum())
        return self._step(self._row_micros(rows_BT, mask_BT), tokens, n_rows)

    def train_documents(self, documents: Sequence[Int32], trained: Sequence[Int32] | None = None) -> StepResult:
        """One optimizer step on whole documents ([T] token ids each), packed, attending to themselves alone (V3 §5.1).

        `trained` ([T] of 0 and 1 for each) marks the tokens to learn, by default all. The same on every rank; loss and
        metrics as `train_minibatch`, whatever the packing. Raises UserError if one is longer than the token budget.
        """
        tokens = sum(float(marks[1:].sum()) for marks in trained or [np.ones_like(ids) for ids in documents])
        return self._step(self._document_micros(documents, trained), tokens, len(documents))

    def validation_loss(self, rows_BT: Rows) -> float:
        """Mean next-token loss in nats; every rank computes its share of the rows."""
        return self._mean_loss(self._row_micros(rows_BT))

    def validation_loss_of_documents(self, documents: Sequence[Int32], trained: Sequence[Int32] | None = None) -> float:
        """The same over the tokens that `train_documents` would learn."""
        return self._mean_loss(self._document_micros(documents, trained))

    @torch.no_grad()
    def _mean_loss(self, micros: Iterable[_Micro]) -> float:
        total = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        for micro in micros:
            output = lm_loss(self.engine.model(**micro.inputs).logits.flatten(0, 1), micro.targets_N, micro.weights_N)
            total += torch.tensor([output.metrics["nll"], output.tokens], dtype=total.dtype, device=total.device)
        nll, tokens = self.engine.sum_over_ranks(total).tolist()
        return float(nll / tokens)

    def _document_micros(self, documents: Sequence[Int32], trained: Sequence[Int32] | None) -> Iterator[_Micro]:
        """This rank's documents, packed."""
        engine = self.engine
        packed = pack_documents(
            documents, engine.config.token_budget, trained=trained, rank=engine.rank, ranks=engine.world
        )
        return (_packed_micro(to_device(micro, engine.device)) for micro in packed)

    def _row_micros(self, rows_BT: Rows, mask_BT: torch.Tensor | None = None) -> Iterator[_Micro]:
        """This rank's rows, as many micro-batches as every other rank has."""
        engine, (n_rows, length) = self.engine, rows_BT.shape
        share = range(engine.rank, n_rows, engine.world)
        per_micro = max(1, engine.config.token_budget // (length - 1))
        for index in range(math.ceil(math.ceil(n_rows / engine.world) / per_micro)):
            chosen = list(share[index * per_micro : (index + 1) * per_micro])
            # A rank without rows left still takes part in the expert all-to-alls: one row, weight 0.
            rows = rows_BT[chosen or [0]].to(engine.device)
            mask = torch.ones_like(rows) if mask_BT is None else mask_BT[chosen or [0]].to(engine.device)
            lengths_S = torch.full((len(rows),), length - 1, device=engine.device)
            inputs = {"input_ids": rows[:, :-1], "use_cache": False}
            weights_N = mask[:, 1:].flatten().float() * bool(chosen)
            yield _Micro(inputs, rows[:, 1:].flatten(), weights_N, lengths_S, tuple(f"row {row}" for row in chosen))

    def _step(self, micros: Iterable[_Micro], tokens: float, n_sequences: int) -> StepResult:
        """One optimizer step; losses are parts of the mean over the global batch's `tokens` and `n_sequences`."""
        engine = self.engine
        sums, micros, mtp, found = torch.zeros(2, device=engine.device), list(micros), MtpStep(engine), ""
        for index, micro in enumerate(micros):
            loss, parts = self._loss(micro, tokens, n_sequences, mtp)
            if not found and not math.isfinite(float(loss.detach())):
                found = f"the loss of {name_samples(micro.names)}"
            engine.backward(poisoned(loss, found), last=index == len(micros) - 1)
            sums += parts.to(engine.device)
        stats = engine.step(found)
        if not stats.taken:
            return StepResult(engine.steps, {"lr": stats.lr, "tokens": tokens, "skipped_nonfinite": engine.skipped})
        loss_sum, balance = engine.sum_over_ranks(sums).tolist()
        metrics = {"loss": loss_sum / tokens, "grad_norm": stats.grad_norm, "lr": stats.lr, "tokens": tokens}
        metrics["skipped_nonfinite"] = engine.skipped
        if engine.config.balance_losses:
            metrics["balance_loss"] = balance
        metrics |= mtp.metrics()
        load = stats.expert_load_LE
        return StepResult(engine.steps, metrics, None if load is None else load.double().cpu().numpy())

    def _loss(self, micro: _Micro, tokens: float, n_sequences: int, mtp: MtpStep) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a micro-batch as its part of the global mean, and [sum of nll, part of the balance loss]."""
        more = mtp.inputs(micro.targets_N, micro.weights_N, micro.lengths_S)
        found = self.engine.forward(counted=micro.n_sequences > 0, **micro.inputs, **more)
        output = lm_loss(found.logits.flatten(0, 1), micro.targets_N, micro.weights_N)
        loss = mtp.add(output.loss / tokens, found.get("mtp_logits"), tokens)
        balance = torch.zeros(())
        if self.engine.config.balance_losses and micro.n_sequences:
            balance = self._balance(micro.lengths_S) * (micro.n_sequences / n_sequences)
            loss = loss + balance
        return loss, torch.tensor([output.metrics["nll"], float(balance.detach())])

    def _balance(self, lengths_S: torch.Tensor) -> torch.Tensor:
        """Weighted balance losses (V3 eq. 17-20; V2 section 2.2.3), mean over sequences, summed over layers.

        All are defined within one sequence, so their mean depends on no micro-batch or rank.
        """
        config, total = self.engine.config, torch.zeros((), device=self.engine.device)
        for layer in self.engine.routing.routes:
            if config.balance_alpha:
                losses_S = sequence_balance_loss(layer.scores_TE, layer.experts_TK, lengths_S)
                total = total + config.balance_alpha * losses_S.mean()
            if config.device_alpha or config.communication_alpha:
                losses = auxiliary_losses(
                    layer.scores_TE, layer.experts_TK, lengths_S, layer.n_groups, layer.groups_per_token
                )
                weighted_S = config.device_alpha * losses.device_S + config.communication_alpha * losses.communication_S
                total = total + weighted_S.mean()
        return total

    def save(self, directory: Path) -> None:
        """Write engine state for an exact resume."""
        save_state(self.engine, directory, {"steps": self.engine.steps, "skipped": self.engine.skipped}, {})

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; raises UserError on a missing or damaged file or another topology."""
        load_state(self.engine, directory)

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face checkpoint."""
        export_hf(self.engine, directory)


def _packed_micro(micro: MicroBatch) -> _Micro:
    inputs = {
        "input_ids": micro.token_ids_T[None],
        "position_ids": micro.position_ids_T[None],
        "segments": SegmentLayout.of_lengths(micro.segment_lengths_S.tolist()),
        "use_cache": False,
    }
    names = tuple(f"document {index}" for index in micro.sample_index_S)
    return _Micro(inputs, micro.targets_T, micro.mask_T, micro.segment_lengths_S, names)
