"""Next-token training (pretraining, SFT rows) of one rank under DeepSpeed.

Dimensions: B rows, T tokens of a row, L MoE layers, E routed experts.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from framework.engines.checkpoint import export_hf, load_state, save_state
from framework.engines.deepspeed_engine import DeepSpeedConfig, TrainingEngine
from framework.types import StepResult


class DeepSpeedTrainer:
    """Causal language-model training with the published schedule, bias update and sequence-wise balance loss."""

    def __init__(self, model: nn.Module, config: DeepSpeedConfig) -> None:
        self.engine = TrainingEngine(model, config)

    def train_minibatch(self, rows_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> StepResult:
        """One optimizer step on the global batch `rows_BT` (int64, the same on every rank, who takes its share).

        Position t predicts t+1; `mask_BT` [B, T] is 1 where the token *at* that position is a target (default: all).
        Rows are not masked across documents (DeepSeek-V3 §4.1). The loss is the mean over all trained tokens.
        Metrics: loss (nats per token), grad_norm, lr, tokens, and balance_loss (as weighted in the sum) when it is on.
        """
        engine, config = self.engine, self.engine.config
        n_rows, length = rows_BT.shape
        if mask_BT is None:
            mask_BT = torch.ones_like(rows_BT)
        tokens = float(mask_BT[:, 1:].sum())
        share = range(engine.rank, n_rows, engine.world)
        per_micro = max(1, config.token_budget // (length - 1))
        n_micros = math.ceil(math.ceil(n_rows / engine.world) / per_micro)  # the same on every rank
        sums = torch.zeros(2, device=engine.device)
        for index in range(n_micros):
            chosen = list(share[index * per_micro : (index + 1) * per_micro])
            # A rank without rows left still takes part in the expert all-to-alls: one row, weight 0.
            rows = rows_BT[chosen or [0]].to(engine.device)
            mask = (mask_BT[chosen or [0]] * bool(chosen)).to(engine.device)
            loss, parts = self._loss(rows, mask, tokens, len(chosen) / n_rows)
            engine.backward(loss, last=index == n_micros - 1)
            sums += parts.to(engine.device)
        stats = engine.step()
        loss_sum, balance = engine.sum_over_ranks(sums).tolist()
        metrics = {"loss": loss_sum / tokens, "grad_norm": stats.grad_norm, "lr": stats.lr, "tokens": tokens}
        if config.balance_alpha:
            metrics["balance_loss"] = balance
        load = stats.expert_load_LE
        return StepResult(engine.steps, metrics, None if load is None else load.double().cpu().numpy())

    def _loss(
        self, rows_BT: torch.Tensor, mask_BT: torch.Tensor, tokens: float, row_share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of a micro-batch as its part of the global mean, and [sum of nll, part of the balance loss]."""
        from framework.algorithms.lm_loss import lm_loss

        logits_BTV = self.engine.forward(counted=row_share > 0, input_ids=rows_BT[:, :-1], use_cache=False).logits
        output = lm_loss(logits_BTV.flatten(0, 1), rows_BT[:, 1:].flatten(), mask_BT[:, 1:].flatten().float())
        loss = output.loss / tokens
        balance = torch.zeros(())
        if self.engine.config.balance_losses and row_share:
            balance = self._balance(rows_BT.shape[0]) * row_share
            loss = loss + balance
        return loss, torch.tensor([output.metrics["nll"], float(balance.detach())])

    def _balance(self, n_rows: int) -> torch.Tensor:
        """Weighted balance losses (V3 eq. 17-20; V2 section 2.2.3), mean over sequences, summed over layers.

        All are defined within one sequence, so their mean depends on no micro-batch or rank.
        """
        from framework.algorithms.balance import auxiliary_losses, sequence_balance_loss

        config, total = self.engine.config, torch.zeros((), device=self.engine.device)
        for layer in self.engine.routing.routes:
            lengths_S = torch.full((n_rows,), layer.scores_TE.shape[0] // n_rows, device=layer.scores_TE.device)
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
        save_state(self.engine, directory, {"steps": self.engine.steps}, {})

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; raises UserError on a missing or damaged file or another topology."""
        load_state(self.engine, directory)

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face checkpoint."""
        export_hf(self.engine, directory)
