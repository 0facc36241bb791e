"""GRPO's learner on one data-parallel rank: packed micro-batches, global denominators, older policies by swapping.

Dimensions: T tokens of a packed row, R response tokens, L MoE layers, E routed experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from framework.data.packing import pack, to_device, unpack_responses
from framework.engines.checkpoint import export_hf, load_state, save_state
from framework.engines.deepspeed_engine import DeepSpeedConfig, Snapshot, TrainingEngine
from framework.engines.expert_parallel import own_tensors
from framework.engines.finite import name_samples, poisoned
from framework.engines.mtp_step import MtpStep
from framework.errors import UserError
from framework.models.packed_attention import packed_logprobs, use_packed_attention
from framework.objectives.policy import PolicyObjective
from framework.types import Float32, MicroBatch, Minibatch, PublishedWeights, StepResult, TrainSample

REFERENCE = "reference"
Packer = Callable[..., list[MicroBatch]]  # `packing.pack`, or another layout of the same signal


class DeepSpeedLearner:
    """`protocols.Learner` on DeepSpeed. Every method is collective: all ranks call it with the same arguments.

    The reference policy and kept versions are copies of this rank's weights that a forward borrows; there is no
    second model. What samples of a micro-batch begin with alike is computed once, and counts once in expert loads.
    Version 0 is the weights that the learner was built with; each `publish` makes the next.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: DeepSpeedConfig,
        objective: PolicyObjective,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        packer: Packer = pack,
    ) -> None:
        if engine.balance_losses:  # RL moves the correction bias, if anything (V3 has no balance loss in RL)
            raise UserError("engine.balance_alpha", engine.balance_alpha, "0 in RL, as the other balance losses")
        use_packed_attention(model)
        self.engine = TrainingEngine(model, engine)
        self.objective = objective
        self.version = 0
        self._temperature = temperature  # the sampler's: logprobs are of the distribution that it sampled from
        self._entropy = entropy
        self._pack_samples = packer
        self._fresh = True  # no step since the newest version
        self._kept: dict[int, Snapshot] = {}
        self._reference: Snapshot | None = None
        self._keep_version()
        if objective.kl_coef:
            self.reset_reference()

    def train_minibatch(self, minibatch: Minibatch) -> StepResult:
        """One optimizer step on the whole minibatch; this rank computes its share of the samples.

        Metrics are those of the objective's `loss` as means over the samples' tokens, loss (the policy's), grad_norm,
        lr, tokens (of the samples), skipped_share (of responses left out because their loss is 0), and where MTP
        modules train their mtp_loss_k and mtp_accuracy_k. Raises UserError if a sample exceeds the token budget.
        """
        engine = self.engine
        micros = self._pack(minibatch.samples)
        n_tokens = float(sum(len(sample.response_ids) for sample in minibatch.samples))
        divisor = self.objective.denominator(minibatch.n_responses, minibatch.n_tokens)
        if self.objective.kl_coef:
            micros = self._with_reference(micros)
        rows, names, mtp = [], [], MtpStep(engine)
        found = _bad_sample(minibatch.samples)
        for index, micro in enumerate(micros):
            model = partial(engine.forward, counted=bool(micro.sample_index_S))
            more = mtp.inputs(micro.targets_T, micro.mask_T, micro.segment_lengths_S)
            result = packed_logprobs(model, micro, self._temperature, entropy=self._entropy, mtp=more)
            output = self.objective.loss(result.logprobs_T, micro, result.entropy_T)
            policy = output.loss / divisor
            loss = mtp.add(policy, result.mtp_logits, max(n_tokens, 1.0))
            found = found or _bad_forward(loss, result.logprobs_T, [minibatch.samples[i] for i in micro.sample_index_S])
            engine.backward(poisoned(loss, found), last=index == len(micros) - 1)
            names = list(output.metrics)
            rows.append([float(policy.detach()), *output.metrics.values()])
        stats = engine.step(found)
        self._fresh = self._fresh and not stats.taken
        sums = torch.tensor(rows, dtype=torch.float64, device=engine.device).sum(0)
        loss_sum, *totals = engine.sum_over_ranks(sums).tolist()
        metrics = {name: total / max(n_tokens, 1.0) for name, total in zip(names, totals, strict=True)}
        metrics |= mtp.metrics()
        metrics |= {"loss": loss_sum, "grad_norm": stats.grad_norm, "lr": stats.lr, "tokens": n_tokens}
        metrics["skipped_nonfinite"] = float(engine.skipped)
        if not stats.taken:
            kept = ("lr", "tokens", "skipped_nonfinite")
            return StepResult(engine.steps, {name: metrics[name] for name in kept})
        metrics["skipped_share"] = 1 - len(minibatch.samples) / minibatch.n_responses
        load = stats.expert_load_LE
        return StepResult(engine.steps, metrics, None if load is None else load.double().cpu().numpy())

    def logprobs(self, samples: Sequence[TrainSample], version: int | None = None) -> list[Float32]:
        """Logprobs [R] of each sample's response under the current weights, or under a kept older `version`.

        Every rank returns all of them. Raises UserError if that version is no longer kept.
        """
        if not samples:
            return []
        return self._responses(samples, self._snapshot_of(version))

    def reference_logprobs(self, samples: Sequence[TrainSample]) -> list[Float32]:
        """Logprobs [R] of each sample's response under the reference; every rank returns all of them."""
        return self._responses(samples, self._reference) if samples else []

    def _responses(self, samples: Sequence[TrainSample], snapshot: Snapshot | None) -> list[Float32]:
        found = self._forward_responses(self._pack(samples), snapshot)
        if self.engine.world > 1:
            shares: list[dict[int, Float32] | None] = [None] * self.engine.world
            dist.all_gather_object(shares, found)
            for share in shares:
                found |= share or {}
        return [found[index] for index in range(len(samples))]

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference (R1-Zero: every 400 steps)."""
        self._reference = self.engine.snapshot()

    def publish(self, version: int | None = None) -> PublishedWeights:
        """This rank's share of the weights as `version` (default: the next): its experts, on rank 0 the rest too."""
        from framework.engines.weights import flatten

        self.version = self.version + 1 if version is None else version
        self._fresh = True
        self._keep_version()
        return flatten(own_tensors(self.engine.model), self.version)

    def save(self, directory: Path) -> None:
        """Write this rank's engine state, reference and kept versions for an exact resume."""
        snapshots = {str(version): snapshot for version, snapshot in self._kept.items()}
        if self._reference is not None:
            snapshots[REFERENCE] = self._reference
        counters = {
            "steps": self.engine.steps,
            "skipped": self.engine.skipped,
            "version": self.version,
            "fresh": int(self._fresh),
        }
        save_state(self.engine, directory, counters, snapshots)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; raises UserError on a missing or damaged file or another topology."""
        counters, snapshots = load_state(self.engine, directory)
        self.version, self._fresh = counters["version"], bool(counters["fresh"])
        self._reference = snapshots.pop(REFERENCE, None)
        self._kept = {int(version): snapshot for version, snapshot in snapshots.items()}
        if self.objective.kl_coef and self._reference is None:
            raise UserError(str(directory), "no reference weights", "saved with algorithm.kl_coef=0; resume with 0")

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face checkpoint (safetensors, per-expert names, config)."""
        export_hf(self.engine, directory)

    def _pack(self, samples: Sequence[TrainSample]) -> list[MicroBatch]:
        engine = self.engine
        micros = self._pack_samples(
            samples,
            engine.config.token_budget,
            rank=engine.rank,
            ranks=engine.world,
            denominator=self.objective.average,
        )
        return [to_device(micro, engine.device) for micro in micros] if engine.device.type != "cpu" else micros

    def _with_reference(self, micros: Sequence[MicroBatch]) -> list[MicroBatch]:
        with torch.no_grad(), self.engine.weights_of(self._reference):
            return [
                replace(micro, ref_logprobs_T=packed_logprobs(self.engine.model, micro, self._temperature).logprobs_T)
                for micro in micros
            ]

    def _forward_responses(self, micros: Sequence[MicroBatch], snapshot: Snapshot | None) -> dict[int, Float32]:
        found: dict[int, Float32] = {}
        with torch.no_grad(), self.engine.weights_of(snapshot):
            for micro in micros:
                result = packed_logprobs(self.engine.model, micro, self._temperature)
                found |= unpack_responses(result.logprobs_T, micro)
        return found

    def _keep_version(self) -> None:
        keep = self.engine.config.keep_versions
        if keep:
            self._kept = {v: snapshot for v, snapshot in self._kept.items() if v < self.version}
            self._kept[self.version] = self.engine.snapshot()
            self._kept = {v: snapshot for v, snapshot in self._kept.items() if v >= self.version - keep}

    def has_version(self, version: int) -> bool:
        """Whether `logprobs` can still be computed under that version (not collective)."""
        return version in self._kept or (version == self.version and self._fresh)

    def _snapshot_of(self, version: int | None) -> Snapshot | None:
        if version is None or (version == self.version and self._fresh):
            return None
        if version not in self._kept:
            kept = sorted(self._kept) or "none"
            raise UserError("policy version", version, f"kept are {kept}; raise engine.keep_versions")
        return self._kept[version]


def _bad_sample(samples: Sequence[TrainSample]) -> str:
    """Name the first of the step's samples with a number that is not finite, alike on every rank."""
    for sample in samples:
        for name in ("sampler_logprobs", "old_logprobs", "advantage"):
            values = getattr(sample, name)
            if values is not None and not np.isfinite(values).all():
                return f"{name} of {name_samples([sample.prompt_id])}"
    return ""


def _bad_forward(loss: torch.Tensor, logprobs_T: torch.Tensor, samples: Sequence[TrainSample]) -> str:
    """Name what of a micro-batch is not finite. A ratio is limited before it is used, so logprobs are looked at too."""
    finite = torch.stack([logprobs_T.detach().isfinite().all(), loss.detach().isfinite()]).tolist()
    bad = next((name for name, good in zip(("logprobs", "the loss"), finite, strict=True) if not good), "")
    return f"{bad} of {name_samples(list(dict.fromkeys(s.prompt_id for s in samples)))}" if bad else ""
