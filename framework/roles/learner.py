"""One data-parallel rank of the learner as a Ray actor; `learner_group` is the driver's handle on all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from framework.actors.rank_group import Rank
from framework.algorithms.mismatch import Mismatch, check_mismatch, measure_mismatch, merge_mismatches
from framework.data.shards import TokenRows
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.graph.disk import disk_errors
from framework.objectives.grpo import Grpo
from framework.objectives.policy import PolicyObjective
from framework.roles.batch_parts import At, filled
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import TrainResult
from framework.roles.transports import Transport
from framework.stored import Sample
from framework.types import Float32, Minibatch, PublishedWeights, Response, TrainSample

if TYPE_CHECKING:
    from framework.engines.published_policy import PublishedPolicy


@dataclass(frozen=True)
class PretrainingConfig:
    """The text that is learned beside responses, and how strongly."""

    shards: Path
    coef: float
    rows: int  # of each optimizer step
    row_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class LearnerConfig:
    """What one learner rank is built from."""

    checkpoint: Path  # Hugging Face directory of the first policy
    engine: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    objective: PolicyObjective = field(default_factory=Grpo)
    temperature: float = 1.0  # the sampler's
    entropy: bool = False  # report the policy's entropy
    pretraining: PretrainingConfig | None = None
    ema_decay: float | None = None  # of the average of the weights that is exported; None: the weights
    transport: Transport = "memory"  # of published weights


class LearnerWorker(Rank):
    """The rank. Calls are collective."""

    _text: PretrainingConfig | None = None

    def start(self, rank: int, world: int, host: str, port: int, config: LearnerConfig) -> None:
        """Join the process group and load the model; raises UserError on a bad checkpoint or topology."""
        self.join(rank, world, host, port)
        from framework.engines.published_policy import PublishedPolicy
        from framework.engines.sharded_load import load_sharded
        from framework.objectives.policy_rows import PolicyRows
        from framework.objectives.pretraining_mix import PretrainingMix

        rows = PolicyRows(config.objective, config.temperature, config.entropy)
        self._text, mix = config.pretraining, None
        if self._text is not None:
            self._rows = TokenRows(self._text.shards, "train", self._text.row_tokens, self._text.seed)
            mix = PretrainingMix(rows, self._text.coef)
        model = load_sharded(config.checkpoint, config.engine)
        serve_at = self.address()[0] if config.transport == "network" else ""
        self._learner = PublishedPolicy(model, config.engine, rows, mix, config.ema_decay, serve_at)

    def train(self, batch: TrainBatch, at: Sequence[At] = (), *responses: Response) -> TrainResult:
        """One optimizer step a minibatch; before the first raises MismatchTooLarge if the probe does not pass the gate.

        A batch that engines disagree about must not move the weights. `at`: the places in the batch of `responses`,
        those stored ones that this rank trains on.
        """
        started = time.monotonic()
        batch = filled(batch, dict(zip(at, responses, strict=True))) if at else batch
        self._learner.engine.turn.reload()
        mismatch = self._measure(batch) if batch.probe else None
        if mismatch is not None:
            check_mismatch(mismatch, batch.gate)
        minibatches, policy = batch.minibatches, self._learner.policy
        if policy.old_logprobs == "learner" and not policy.critic:  # with one they are in the batch
            # pi_old is the policy that the batch starts from, so all come before the first step
            minibatches = tuple(
                replace(minibatch, samples=self._with_old_logprobs(minibatch.samples)) for minibatch in minibatches
            )
        if policy.kl_in_reward and policy.kl_coef and not policy.critic:
            minibatches = self._with_kl_reward(minibatches)
        steps = tuple(self._learner.train_minibatches(self._with_text(minibatches)))
        tokens = sum(len(s.prompt_ids) + s.length for minibatch in minibatches for s in minibatch.samples)
        return TrainResult(steps, mismatch, time.monotonic() - started, tokens)

    def logprobs(self, samples: Sequence[TrainSample], version: int | None = None) -> list[Float32]:
        """As `protocols.Learner.logprobs`."""
        return self._awake.logprobs(samples, version)

    def offload(self) -> None:
        """Leave the GPU to the samplers; any other call comes back to it first."""
        self._learner.engine.turn.offload()

    def look(self, samples: Sequence[TrainSample]) -> tuple[list[Float32] | None, list[Float32]]:
        """Logprobs [R] of each response, before any is trained: pi_old's (None: the sampler's), and the reference's."""
        learner = self._awake
        old = learner.logprobs(samples) if learner.policy.old_logprobs == "learner" else None
        return old, learner.reference_logprobs(samples)

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference."""
        self._awake.reset_reference()

    def publish(self, version: int) -> tuple[PublishedWeights, int]:
        """This rank's weights as `version`, and the version alone: errors show without fetching the weights."""
        return self._awake.publish(version), version

    def save(self, directory: Path) -> None:
        """Write engine state; raises UserError for a disk that is full or cannot be written."""
        with disk_errors(directory):
            self._awake.save(directory)

    def load(self, directory: Path) -> None:
        """Restore engine state."""
        self._awake.load(directory)

    def export(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint (rank 0); raises UserError as `save` does."""
        with disk_errors(directory):
            self._awake.export(directory)

    @property
    def _awake(self) -> PublishedPolicy:
        """The learner, back on its GPU."""
        self._learner.engine.turn.reload()
        return self._learner

    def _with_text(self, minibatches: Sequence[Minibatch]) -> Sequence[Minibatch]:
        """With the pretraining rows of the steps that come next."""
        if (text := self._text) is None:
            return minibatches
        first, found = self._learner.engine.steps, list[Minibatch]()
        for place, minibatch in enumerate(minibatches):
            rows_BT = self._rows.batch((first + place) * text.rows, text.rows)
            found.append(replace(minibatch, pretraining=tuple(rows_BT.astype(np.int32))))
        return found

    def _with_old_logprobs(self, samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        found = self._learner.logprobs(samples)
        return tuple(replace(sample, old_logprobs=old) for sample, old in zip(samples, found, strict=True))

    def _with_kl_reward(self, minibatches: tuple[Minibatch, ...]) -> tuple[Minibatch, ...]:
        """Groups are spread over the minibatches, and their baselines need all of their responses."""
        samples = [sample for minibatch in minibatches for sample in minibatch.samples]
        found = self._learner.reference_logprobs(*(minibatch.samples for minibatch in minibatches))
        changed = iter(self._learner.policy.with_kl_reward(samples, found))
        return tuple(replace(m, samples=tuple(next(changed) for _ in m.samples)) for m in minibatches)

    def _measure(self, batch: TrainBatch) -> Mismatch:
        """Compare each token of the probe with the policy version that sampled it, where that is still kept."""
        parts = []
        probe = [sample for sample in batch.probe if isinstance(sample, TrainSample)]
        assert len(probe) == len(batch.probe), "every rank gets the whole probe"
        for version in sorted({int(v) for sample in probe for v in sample.weight_versions}):
            if self._learner.has_version(version):
                samples = [sample for sample in probe if version in sample.weight_versions]
                parts.append(measure_mismatch(samples, self._learner.logprobs(samples, version), version))
        return merge_mismatches(parts)
