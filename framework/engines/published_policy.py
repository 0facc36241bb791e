"""A policy under training as the GRPO loop sees it: versions of its weights are published, older ones answer too.

Dimensions: R response tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.data.packing import unpack_responses
from framework.engines.deepspeed_engine import DeepSpeedConfig, Snapshot
from framework.engines.expert_parallel import own_tensors
from framework.engines.memory_file import MemoryWriter
from framework.engines.share_server import ShareServer
from framework.engines.trainer import Trainer, gathered
from framework.engines.weights import write
from framework.errors import UserError
from framework.models.packed_attention import packed_logprobs
from framework.objectives.policy_rows import PolicyRows
from framework.objectives.pretraining_mix import PretrainingMix
from framework.stored import Sample
from framework.types import Float32, Minibatch, PublishedWeights, StepResult

EMA = "ema"  # the name of the average among the kept weights of a checkpoint


class PublishedPolicy:
    """`protocols.Learner` on DeepSpeed. Every method is collective: all ranks call it with the same arguments.

    The reference policy and kept versions are copies of this rank's weights that a forward borrows; there is no
    second model. Version 0 is the weights that the learner was built with; each `publish` makes the next.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DeepSpeedConfig,
        rows: PolicyRows,
        mix: PretrainingMix | None = None,
        ema_decay: float | None = None,
        serve_at: str = "",
    ) -> None:
        """`mix`: the same rows with pretraining beside them, where there is any.

        `ema_decay`: exports are an average of the weights, which after every batch is `ema_decay` times itself and for
        the rest the batch's last weights. What is published, and trained on, are the weights themselves.
        `serve_at`: this machine's address, if samplers on others are to get what is published.
        """
        if config.balance_losses:  # RL moves the correction bias, if anything (V3 has no balance loss in RL)
            raise UserError("engine.balance_alpha", config.balance_alpha, "0 in RL, as the other balance losses")
        self.trainer: Trainer[Minibatch, Any] = Trainer(model, config, mix or rows)
        self.engine, self.policy = self.trainer.engine, rows.policy
        self.version = 0
        self._rows = rows
        self._fresh = True  # no step since the newest version
        self._kept: dict[int, Snapshot] = {}
        self._server = ShareServer(serve_at) if serve_at else None
        self._shares: deque[MemoryWriter] = deque()  # published; of the one before the newest a sampler may still read
        self._keep_version()
        self._ema_decay = ema_decay
        self._ema = self._now() if ema_decay is not None else None

    def train_minibatch(self, minibatch: Minibatch) -> StepResult:
        """One optimizer step, as `Trainer.step`."""
        return self.train_minibatches([minibatch])[0]

    def train_minibatches(self, minibatches: Sequence[Minibatch]) -> list[StepResult]:
        """One optimizer step each, as `Trainer.steps`."""
        skipped = self.engine.skipped
        results = self.trainer.steps(minibatches)
        self._fresh = self._fresh and self.engine.skipped == skipped + len(minibatches)
        if self._ema is not None and self._ema_decay is not None:
            now = self._now()
            for average, own in zip(
                (*self._ema.parameters, *self._ema.biases), (*now.parameters, *now.biases), strict=True
            ):
                average.lerp_(own, 1.0 - self._ema_decay)
        return results

    def logprobs(self, samples: Sequence[Sample], version: int | None = None) -> list[Float32]:
        """Logprobs [R] of each sample's response under the current weights, or under a kept older `version`.

        Every rank returns all of them. Raises UserError if that version is no longer kept.
        """
        return self._responses([samples], self._snapshot_of(version)) if samples else []

    def reference_logprobs(self, *minibatches: Sequence[Sample]) -> list[Float32]:
        """Logprobs [R] of each sample's response under the reference; every rank returns those of all minibatches."""
        return self._responses(minibatches, self.trainer.reference) if any(minibatches) else []

    @torch.no_grad()
    def _responses(self, minibatches: Sequence[Sequence[Sample]], snapshot: Snapshot | None) -> list[Float32]:
        """Each minibatch is packed for itself, as it is for its step: a rank has no other responses."""
        logprobs: list[Float32] = []
        with self.engine.weights_of(snapshot):
            for samples in minibatches:
                found: dict[int, Float32] = {}
                for micro in map(self.trainer.on_device, self._rows.pack(samples, self.trainer.share)):
                    layout = self.trainer.layout(micro, scoring=True)
                    result = packed_logprobs(self.engine.model, micro, self._rows.temperature, layout=layout)
                    found |= unpack_responses(result.logprobs_T, micro)
                found = gathered(found)
                logprobs += [found[index] for index in range(len(samples))]
        return logprobs

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference (R1-Zero: every 400 steps)."""
        self.trainer.reset_reference()

    def publish(self, version: int | None = None) -> PublishedWeights:
        """This rank's share of the weights as `version` (default: the next): its experts, on rank 0 the rest too."""
        self.version = self.version + 1 if version is None else version
        self._fresh = True
        self._keep_version()
        while len(self._shares) > 1:  # before the next is written: never are there more than two
            self._shares.popleft().close()
        owner, address = f"learner rank {self.engine.rank}", self._server.address if self._server else ""
        published, memory = write(own_tensors(self.engine.model), self.version, owner, address)
        self._shares.append(memory)
        if self._server:
            self._server.offer(published)
        return published

    def save(self, directory: Path) -> None:
        """Write this rank's engine state, reference and kept versions for an exact resume."""
        counters = {"version": self.version, "fresh": int(self._fresh)}
        kept = {str(version): snapshot for version, snapshot in self._kept.items()}
        self.trainer.save(directory, counters, kept if self._ema is None else {**kept, EMA: self._ema})

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; raises UserError as `Trainer.load`."""
        counters, snapshots = self.trainer.load(directory)
        found = snapshots.pop(EMA, None)
        if self._ema is not None and found is None:
            allowed = "saved without one (ema_decay=null): resume with the same"
            raise UserError(str(directory), "no average of the weights", allowed)
        self._ema = found if self._ema is not None else None
        self.version, self._fresh = counters["version"], bool(counters["fresh"])
        self._kept = {int(version): snapshot for version, snapshot in snapshots.items()}

    def export(self, directory: Path) -> None:
        """Rank 0 writes a Hugging Face checkpoint (safetensors, per-expert names, config): of the average, if any."""
        with self.engine.weights_of(None if self._ema is None else self._typed(self._ema)):
            self.trainer.export(directory)

    def _now(self) -> Snapshot:
        """The weights in float32: an average in bfloat16 would not move."""
        found = self.engine.snapshot()
        return Snapshot(tuple(w.float() for w in found.parameters), tuple(bias.float() for bias in found.biases))

    def _typed(self, average: Snapshot) -> Snapshot:
        """The average in the weights' own types."""
        own = self.engine.snapshot()
        parameters = (ours.to(now.dtype) for ours, now in zip(average.parameters, own.parameters, strict=True))
        biases = (ours.to(now.dtype) for ours, now in zip(average.biases, own.biases, strict=True))
        return Snapshot(tuple(parameters), tuple(biases))

    def has_version(self, version: int) -> bool:
        """Whether `logprobs` can still be computed under that version (not collective)."""
        return version in self._kept or (version == self.version and self._fresh)

    def _keep_version(self) -> None:
        keep = self.engine.config.keep_versions
        if keep:
            self._kept = {v: snapshot for v, snapshot in self._kept.items() if v < self.version}
            self._kept[self.version] = self.engine.snapshot()
            self._kept = {v: snapshot for v, snapshot in self._kept.items() if v >= self.version - keep}

    def _snapshot_of(self, version: int | None) -> Snapshot | None:
        if version is None or (version == self.version and self._fresh):
            return None
        if version not in self._kept:
            kept = sorted(self._kept) or "none"
            raise UserError("policy version", version, f"kept are {kept}; raise engine.keep_versions")
        return self._kept[version]
