"""The trainer of every objective: one rank's steps under DeepSpeed, and nothing of what is learned.

Dimensions: B rows, T tokens of a row, S its segments, L MoE layers, E routed experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from framework.algorithms.balance import Summed, auxiliary_losses, identity, sequence_balance_loss
from framework.data.packing import to_device
from framework.engines import finite
from framework.engines.checkpoint import export_hf, load_state, save_state
from framework.engines.deepspeed_engine import DeepSpeedConfig, Snapshot, TrainingEngine
from framework.engines.mtp_step import MtpStep
from framework.engines.tensor_parallel import TensorParallelEngine
from framework.errors import UserError
from framework.models.output_head import Asked, use_output_head
from framework.models.packed_attention import SegmentLayout, use_packed_attention
from framework.objectives.objective import BatchT, MicroT, Objective, Share
from framework.types import LossOutput, MicroBatch, StepResult

T = TypeVar("T")
REFERENCE = "reference"
Measure = Callable[[Any, Any, SegmentLayout | None], Mapping[int, T]]  # of a model on a row: what of each sequence


class Trainer(Generic[BatchT, MicroT]):
    """One rank. Every method is collective: all ranks call it with the same arguments."""

    def __init__(self, model: nn.Module, config: DeepSpeedConfig, objective: Objective[BatchT, MicroT]) -> None:
        self._packed = objective.packed or config.sp_size > 1
        if config.sp_size > 1 and (config.tensor_parallel or not (objective.scores_tokens or objective.scalar_head)):
            raise UserError("engine.sp_size", config.sp_size, "must be 1: rows of this stage stay whole")
        if objective.scores_tokens:
            use_output_head(model, cut=config.tensor_parallel)
        if self._packed:
            use_packed_attention(model)
        self.engine = (TensorParallelEngine if config.tensor_parallel else TrainingEngine)(model, config)
        self.objective = objective
        self.share = share_of(config, self.engine.rank, self.engine.world)
        self._reference: Snapshot | None = None
        if objective.keeps_reference:
            self.reset_reference()

    def step(self, batch: BatchT) -> StepResult:
        """One optimizer step on the whole batch, as `steps`."""
        return self.steps([batch])[0]

    def steps(self, batches: Sequence[BatchT]) -> list[StepResult]:
        """One optimizer step on each batch; this rank computes its share. The reference is put in place once for all.

        Metrics: loss (the objective's), its metrics as means over what they count, grad_norm, lr, tokens (learned),
        skipped_nonfinite; balance_loss (as weighted in the sum) where it is on; mtp_loss_k (nats) and mtp_accuracy_k of
        each depth of multi-token prediction. Raises UserError if a sequence exceeds the token budget, NotFinite.
        """
        prepared = self._with_reference([self._micro_batches(batch) for batch in batches])
        return [self._step(batch, micros) for batch, micros in zip(batches, prepared, strict=True)]

    def _step(self, batch: BatchT, micros: list[MicroT]) -> StepResult:
        engine, objective = self.engine, self.objective
        size, mtp, sums, found = objective.size(batch), MtpStep(engine), _Sums(), objective.first_bad(batch)
        micros = self._with_sums(micros)
        for index, micro in enumerate(micros):
            layout = self.layout(micro)
            forward = _Forward(engine, micro, mtp, layout)
            output = objective.loss(forward, micro, layout)
            main = output.loss / (size.divisor * engine.config.sp_size)
            loss = mtp.add(main, forward.mtp_logits, max(size.tokens, 1.0))
            if engine.config.balance_losses:
                share = len(micro.sample_index_S) / (size.sequences * engine.config.sp_size)
                balance = self._balance(micro, layout) * share
                loss, more = loss + balance, {"balance_loss": float(balance.detach())}
            else:
                more = {}
            if not found and (bad := _first_bad(loss, output)):
                found = f"{bad} of {finite.name_samples(self._names(batch, micro))}"
            engine.backward(finite.poisoned(loss, found), last=index == len(micros) - 1)
            sums.add(output, {"loss": float(main.detach()), **more})
        stats = engine.step(found)
        metrics = {"lr": stats.lr, "tokens": float(size.tokens), "skipped_nonfinite": float(engine.skipped)}
        if not stats.taken:
            return StepResult(engine.steps, metrics)
        metrics |= {"grad_norm": stats.grad_norm, **size.metrics, **sums.means(engine), **mtp.metrics()}
        load = stats.expert_load_LE
        return StepResult(engine.steps, metrics, None if load is None else load.double().cpu().numpy())

    @torch.no_grad()
    def evaluate(self, batch: BatchT) -> dict[str, float]:
        """Return the objective's loss and metrics on a batch, of which every rank computes its share."""
        size, sums = self.objective.size(batch), _Sums()
        for micro in self._with_sums(self._with_reference([self._micro_batches(batch)])[0]):
            output = self.objective.loss(self.engine.model, micro, self.layout(micro))
            sums.add(output, {"loss": float(output.loss / (size.divisor * self.engine.config.sp_size))})
        return sums.means(self.engine)

    @torch.no_grad()
    def measure(self, batch: BatchT, measure: Measure[T]) -> list[T]:
        """Return something of each sequence of a batch under the current weights; every rank returns all of them."""
        found: dict[int, T] = {}
        for micro in self._micro_batches(batch):
            found |= measure(self.engine.model, micro, self.layout(micro, scoring=True))
        all_ranks = gathered(found)
        return [all_ranks[index] for index in sorted(all_ranks)]

    def reset_reference(self) -> None:
        """Make the current weights the reference (R1-Zero's KL term: every 400 steps)."""
        self._reference = self.engine.snapshot()

    @property
    def reference(self) -> Snapshot | None:
        """The weights that the objective compares with, None where it needs none."""
        return self._reference

    def save(
        self,
        directory: Path,
        counters: Mapping[str, int] | None = None,
        snapshots: Mapping[str, Snapshot] | None = None,
    ) -> None:
        """Write this rank's engine state and the reference for an exact resume, with further counters and weights."""
        kept = {**(snapshots or {}), **({REFERENCE: self._reference} if self._reference else {})}
        own = {"steps": self.engine.steps, "skipped": self.engine.skipped}
        save_state(self.engine, directory, own | dict(counters or {}), kept)

    def load(self, directory: Path) -> tuple[dict[str, int], dict[str, Snapshot]]:
        """Restore what `save` wrote; return the further counters and weights.

        Raises UserError on a missing or damaged file or another topology.
        """
        counters, snapshots = load_state(self.engine, directory)
        self._reference = snapshots.pop(REFERENCE, None)
        if self.objective.keeps_reference and self._reference is None:
            allowed = "saved by an objective without one (algorithm.kl_coef=0): resume with the same"
            raise UserError(str(directory), "no reference weights", allowed)
        return counters, snapshots

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face checkpoint (safetensors, per-expert names, config)."""
        export_hf(self.engine, directory)

    def on_device(self, micro: MicroT) -> MicroT:
        """Move a row to this rank's device."""
        return to_device(micro, self.engine.device) if self.engine.device.type != "cpu" else micro

    def _micro_batches(self, batch: BatchT) -> list[MicroT]:
        return [self.on_device(micro) for micro in self.objective.micro_batches(batch, self.share)]

    def _with_sums(self, micros: list[MicroT]) -> list[MicroT]:
        """The rows with what the losses need of the whole batch, under the weights of now."""
        model, objective = self.engine.model, self.objective
        if not objective.two_passes:
            return micros
        with torch.no_grad():
            found = [objective.first_sums(model, micro, self.layout(micro, scoring=True)) for micro in micros]
        sums: list[float] = self.engine.sum_over_ranks(torch.stack(found).sum(0)).tolist()
        return [objective.with_sums(micro, sums) for micro in micros]

    def layout(self, micro: MicroBatch, scoring: bool = False) -> SegmentLayout | None:
        """Return how a row lies, on this rank; None where the objective does not pack.

        An MTP module sees the token behind a prefix, and balance losses each sequence: they can't share any, unless the
        forward is for `scoring` alone. A placeholder is not spread: every rank runs its own.
        """
        if not self._packed:
            return None
        apart = not scoring and (self.engine.mtp_depths or self.engine.config.balance_losses)
        if self.objective.shares_prefixes and not apart:
            layout = SegmentLayout.of(micro)
        else:
            layout = SegmentLayout.of_lengths(micro.segment_lengths_S.tolist())
        group = self.engine.sequence_group
        return layout.spread(group) if group is not None and micro.sample_index_S else layout

    def _with_reference(self, batches: list[list[MicroT]]) -> list[list[MicroT]]:
        if not self.objective.keeps_reference:
            return batches
        with torch.no_grad(), self.engine.weights_of(self._reference):
            return [[self._referred(micro) for micro in micros] for micros in batches]

    def _referred(self, micro: MicroT) -> MicroT:
        return self.objective.with_reference(self.engine.model, micro, self.layout(micro, scoring=True))

    def _names(self, batch: BatchT, micro: MicroBatch) -> list[str]:
        return list(dict.fromkeys(self.objective.name(batch, index) for index in micro.sample_index_S))

    def _balance(self, micro: MicroBatch, layout: SegmentLayout | None) -> torch.Tensor:
        """Weighted balance losses (V3 eq. 17-20; V2 section 2.2.3), mean over sequences, summed over layers.

        All are defined within one sequence, so their mean depends on no micro-batch or rank.
        """
        config, total = self.engine.config, torch.zeros((), device=self.engine.device)
        lengths_S: torch.Tensor = micro.segment_lengths_S
        summed: Summed = identity
        if layout is not None and layout.shard is not None:
            lengths_S, summed = layout.shard.local_lengths(lengths_S), layout.shard.summed
        for layer in self.engine.routing.routes if micro.sample_index_S else ():
            if config.balance_alpha:
                losses_S = sequence_balance_loss(layer.scores_TE, layer.experts_TK, lengths_S, summed)
                total = total + config.balance_alpha * losses_S.mean()
            if config.device_alpha or config.communication_alpha:
                losses = auxiliary_losses(
                    layer.scores_TE, layer.experts_TK, lengths_S, layer.n_groups, layer.groups_per_token, summed
                )
                weighted_S = config.device_alpha * losses.device_S + config.communication_alpha * losses.communication_S
                total = total + weighted_S.mean()
        return total


def share_of(config: DeepSpeedConfig, rank: int, world: int) -> Share:
    """Return a rank's part of a batch: ranks that share a row share a part, and all of them return its whole loss."""
    sharing = world if config.tensor_parallel else config.sp_size
    return Share(config.token_budget, rank // sharing, world // sharing)


def gathered(found: dict[int, T]) -> dict[int, T]:
    """Return what all ranks have found, by sequence (a collective)."""
    if dist.get_world_size() == 1:
        return found
    shares: list[dict[int, T]] = [{}] * dist.get_world_size()
    dist.all_gather_object(shares, found)
    return {index: value for share in shares for index, value in share.items()}


class _Forward:
    """The engine's forward on one row, as an objective calls the model; MTP modules run beside it."""

    def __init__(self, engine: TrainingEngine, micro: MicroBatch, mtp: MtpStep, layout: SegmentLayout | None) -> None:
        self._engine, self._counted = engine, bool(micro.sample_index_S)
        self._more = mtp.inputs(micro, None if layout is None else layout.shard)
        self.mtp_logits: Sequence[torch.Tensor] = ()  # of each depth, for `output_head.scores_of`

    def __call__(self, *, asked: Sequence[Asked] = (), **inputs: Any) -> Any:
        more = dict(self._more)
        if asked:
            more["asked"] = [*asked, *more.get("asked", ())]
        output = self._engine.forward(counted=self._counted, **inputs, **more)
        self.mtp_logits = getattr(output, "mtp_logits", None) or ()
        return output


@dataclass
class _Sums:
    """Sums over micro-batches: parts of the loss as they are, metrics with how many they are sums over."""

    parts: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    count: float = 0.0

    def add(self, output: LossOutput, parts: Mapping[str, float]) -> None:
        """Add a micro-batch's."""
        for sums, values in ((self.parts, parts), (self.metrics, output.metrics)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.count += output.count

    def means(self, engine: TrainingEngine) -> dict[str, float]:
        """Over all ranks (a collective)."""
        values = [self.count, *self.parts.values(), *self.metrics.values()]
        count, *sums = engine.sum_over_ranks(torch.tensor(values, dtype=torch.float64, device=engine.device)).tolist()
        parts, metrics = sums[: len(self.parts)], sums[len(self.parts) :]
        means = {name: value / max(count, 1.0) for name, value in zip(self.metrics, metrics, strict=True)}
        return means | dict(zip(self.parts, parts, strict=True))


def _first_bad(loss: torch.Tensor, output: LossOutput) -> str:
    """Name what of a micro-batch is not finite, in one device synchronisation; "" if all is."""
    named = {**output.outputs, "the loss": loss}
    finite_N = torch.stack([tensor.detach().isfinite().all() for tensor in named.values()]).tolist()
    return next((name for name, good in zip(named, finite_N, strict=True) if not good), "")
