"""The learner group: one actor a data-parallel rank, and the driver's handle that calls all ranks alike.

A collective needs every rank, so ranks live and die together: when one is lost the group kills the others, says which
one it was, and is started again from a checkpoint.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from framework.algorithms.mismatch import Mismatch, check_mismatch, measure_mismatch, merge_mismatches
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import FrameworkError, RunFailed
from framework.graph.store import disk_errors
from framework.objectives.grpo import Grpo
from framework.objectives.policy import PolicyObjective
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import LearnerLost, TrainResult
from framework.types import Float32, Minibatch, PublishedWeights, TrainSample

_COLLECTIVE = re.compile(r"gloo|nccl|connection|timed? ?out|peer|collective", re.IGNORECASE)
_PING_EVERY_S = 1.0
_DEATH_NOTICE_S = 10.0  # Ray tells of a dead actor a moment after its peers' collectives have failed


@dataclass(frozen=True)
class LearnerConfig:
    """What one learner rank is built from."""

    checkpoint: Path  # Hugging Face directory of the first policy
    engine: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    objective: PolicyObjective = field(default_factory=Grpo)
    temperature: float = 1.0  # the sampler's
    entropy: bool = False  # report the policy's entropy


class LearnerWorker:
    """One rank as a Ray actor: plain class, wrapped by whoever starts it. Calls are collective."""

    def address(self) -> tuple[str, int]:
        """Host and a free port on it; asked of rank 0 before the group joins."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def start(self, rank: int, world: int, host: str, port: int, config: LearnerConfig) -> None:
        """Join the process group and load the model; raises UserError on a bad checkpoint or topology."""
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR=host, MASTER_PORT=str(port)
        )
        from framework.engines.policy_learner import DeepSpeedLearner
        from framework.engines.sharded_load import load_sharded

        self._learner = DeepSpeedLearner(
            load_sharded(config.checkpoint, config.engine),
            config.engine,
            config.objective,
            temperature=config.temperature,
            entropy=config.entropy,
        )

    def train(self, batch: TrainBatch) -> TrainResult:
        """One optimizer step a minibatch; before the first raises MismatchTooLarge if the probe does not pass the gate.

        A batch that engines disagree about must not move the weights.
        """
        started = time.monotonic()
        mismatch = self._measure(batch) if batch.probe else None
        if mismatch is not None:
            check_mismatch(mismatch, batch.gate)
        minibatches = batch.minibatches
        if self._learner.objective.old_logprobs == "learner":
            # pi_old is the policy that the batch starts from, so all come before the first step
            minibatches = tuple(
                replace(minibatch, samples=self._with_old_logprobs(minibatch.samples)) for minibatch in minibatches
            )
        if self._learner.objective.kl_in_reward and self._learner.objective.kl_coef:
            minibatches = self._with_kl_reward(minibatches)
        steps = tuple(self._learner.train_minibatch(minibatch) for minibatch in minibatches)
        tokens = sum(len(s.prompt_ids) + len(s.response_ids) for minibatch in minibatches for s in minibatch.samples)
        return TrainResult(steps, mismatch, time.monotonic() - started, tokens)

    def logprobs(self, samples: Sequence[TrainSample], version: int | None = None) -> list[Float32]:
        """As `protocols.Learner.logprobs`."""
        return self._learner.logprobs(samples, version)

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference."""
        self._learner.reset_reference()

    def publish(self, version: int) -> tuple[PublishedWeights, int]:
        """This rank's weights as `version`, and the version alone: errors show without fetching the weights."""
        return self._learner.publish(version), version

    def save(self, directory: Path) -> None:
        """Write engine state; raises UserError for a disk that is full or cannot be written."""
        with disk_errors(directory):
            self._learner.save(directory)

    def load(self, directory: Path) -> None:
        """Restore engine state."""
        self._learner.load(directory)

    def export(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint (rank 0); raises UserError as `save` does."""
        with disk_errors(directory):
            self._learner.export(directory)

    def _with_old_logprobs(self, samples: tuple[TrainSample, ...]) -> tuple[TrainSample, ...]:
        found = self._learner.logprobs(samples)
        return tuple(replace(sample, old_logprobs=old) for sample, old in zip(samples, found, strict=True))

    def _with_kl_reward(self, minibatches: tuple[Minibatch, ...]) -> tuple[Minibatch, ...]:
        """Groups are spread over the minibatches, and their baselines need all of their responses."""
        samples = [sample for minibatch in minibatches for sample in minibatch.samples]
        changed = iter(self._learner.objective.with_kl_reward(samples, self._learner.reference_logprobs(samples)))
        return tuple(replace(m, samples=tuple(next(changed) for _ in m.samples)) for m in minibatches)

    def _measure(self, batch: TrainBatch) -> Mismatch:
        """Compare each token of the probe with the policy version that sampled it, where that is still kept."""
        parts = []
        for version in sorted({int(v) for sample in batch.probe for v in sample.weight_versions}):
            if self._learner.has_version(version):
                samples = [sample for sample in batch.probe if version in sample.weight_versions]
                parts.append(measure_mismatch(samples, self._learner.logprobs(samples, version), version))
        return merge_mismatches(parts)


class LearnerGroup:
    """The driver's handle on all ranks; `rl_clients.LearnerClient`. A lost rank surfaces as LearnerLost, by name."""

    def __init__(
        self, config: LearnerConfig, ranks: int = 1, *, actor_options: Sequence[dict[str, Any]] | None = None
    ) -> None:
        """`start` or `load` starts the ranks. `actor_options`: Ray's for each rank; by default one CPU each."""
        self.config, self.ranks = config, ranks
        self._options = list(actor_options or [{"num_cpus": 1}] * ranks)
        self._workers: list[Any] = []
        self._training: dict[int, Any] = {}  # rank -> reference still out
        self._trained: dict[int, TrainResult] = {}
        self._pings: dict[int, Any] = {}  # rank -> reference still out
        self._pinged = 0.0

    def start(self) -> None:
        """Start all ranks with the first policy, in place of any that live. Raises UserError or LearnerLost."""
        import ray

        self.shutdown()
        worker = ray.remote(LearnerWorker)
        self._workers = [worker.options(max_restarts=0, **options).remote() for options in self._options]
        (host, port), *_ = self._gather({0: self._workers[0].address.remote()}).values()
        calls = {
            rank: actor.start.remote(rank, self.ranks, host, port, self.config)
            for rank, actor in enumerate(self._workers)
        }
        self._gather(calls)

    def shutdown(self) -> None:
        """Kill every rank."""
        import ray

        for worker in self._workers:
            ray.kill(worker, no_restart=True)
        self._workers, self._training, self._trained, self._pings = [], {}, {}, {}

    def train(self, batch: TrainBatch) -> None:
        """Start training on a batch; `poll` returns the result."""
        import ray

        self._require_workers()
        shared = ray.put(batch)
        self._trained = {}
        self._training = {rank: worker.train.remote(shared) for rank, worker in enumerate(self._workers)}

    @property
    def outstanding(self) -> list[Any]:
        """References of the ranks that still train."""
        return list(self._training.values())

    def poll(self) -> TrainResult | None:
        """Rank 0's result once all ranks are done, else None. Raises LearnerLost, or what a rank raised."""
        if not self._training and not self._trained:
            self._ping()
            return None
        self._require_workers()
        self._trained |= self._take_ready(self._training)
        if self._training:
            return None
        result, self._trained = self._trained[0], {}
        return result

    def publish(self, version: int) -> Sequence[Any]:
        """Make the weights `version`; return an ObjectRef of PublishedWeights for each rank that holds a share."""
        self._require_workers()
        pairs = [worker.publish.options(num_returns=2).remote(version) for worker in self._workers]
        self._gather({rank: done for rank, (_, done) in enumerate(pairs)})
        return [weights for weights, _ in pairs[: self.config.engine.ep_size]]

    def logprobs(self, samples: Sequence[TrainSample], version: int | None = None) -> list[Float32]:
        """As `protocols.Learner.logprobs`."""
        result: list[Float32] = self._call("logprobs", samples, version)
        return result

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference."""
        self._call("reset_reference")

    def save(self, directory: Path) -> None:
        """Write engine state into `directory`, which all ranks can reach."""
        self._call("save", directory)

    def load(self, directory: Path) -> None:
        """Restore engine state; ranks that are gone are started first."""
        if not self._workers:
            self.start()
        self._call("load", directory)

    def export(self, directory: Path) -> None:
        """Write a Hugging Face checkpoint."""
        self._call("export", directory)

    def _call(self, method: str, *args: Any) -> Any:
        """Call all ranks with the same arguments; return rank 0's result."""
        self._require_workers()
        return self._gather({r: getattr(w, method).remote(*args) for r, w in enumerate(self._workers)})[0]

    def _ping(self) -> None:
        """Notice a death between two calls as well: with its node, weights that no rollout worker has yet are gone."""
        self._take_ready(self._pings)
        if not self._pings and time.monotonic() - self._pinged > _PING_EVERY_S:
            self._pinged = time.monotonic()
            self._pings = {rank: worker.__ray_ready__.remote() for rank, worker in enumerate(self._workers)}

    def _take_ready(self, calls: dict[int, Any]) -> dict[int, Any]:
        """Take the calls that have returned out of `calls`; their results."""
        import ray

        references = list(calls.values())
        ready = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        return self._gather({rank: calls.pop(rank) for rank, ref in list(calls.items()) if ref in ready})

    def _require_workers(self) -> None:
        if not self._workers:
            raise LearnerLost("no rank is running")

    def _gather(self, calls: dict[int, Any]) -> dict[int, Any]:
        """Wait for all ranks' calls; the first failure decides, not the slowest rank."""
        import ray

        results: dict[int, Any] = {}
        waiting = {ref: rank for rank, ref in calls.items()}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
            for ref in ready:
                rank = waiting.pop(ref)
                try:
                    results[rank] = ray.get(ref)
                except ray.exceptions.RayError as error:
                    self._fail(rank, error, waiting)
        return results

    def _fail(self, rank: int, error: Any, waiting: dict[Any, int]) -> None:
        """Kill the group and raise: the framework's own error as it is, LearnerLost for a death, else RunFailed."""
        import ray

        cause = getattr(error, "cause", None)
        if isinstance(cause, FrameworkError):
            self.shutdown()
            raise cause
        died: int | None = rank if isinstance(error, ray.exceptions.RayActorError) else None
        if died is None:
            died = self._dead_rank(rank)
        self.shutdown()
        text = _last_line(error)
        if died is not None:
            raise LearnerLost(f"learner rank {died} of {self.ranks} died: {text}") from error
        if _COLLECTIVE.search(text):
            others = sorted(set(waiting.values()))
            raise LearnerLost(f"learner rank {rank} failed in a collective (ranks {others} waiting): {text}") from error
        raise RunFailed(f"learner rank {rank} failed: {text}") from error

    def _dead_rank(self, asking: int) -> int | None:
        """Which other rank has died, given a moment to be noticed; None if all live."""
        import ray

        pings = {w.__ray_ready__.remote(): r for r, w in enumerate(self._workers) if r != asking}
        deadline = time.monotonic() + _DEATH_NOTICE_S
        while pings and time.monotonic() < deadline:
            ready, _ = ray.wait(list(pings), num_returns=1, timeout=0.2)
            for ref in ready:
                rank = pings.pop(ref)
                try:
                    ray.get(ref)
                except ray.exceptions.RayActorError:
                    return rank
        return None


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
