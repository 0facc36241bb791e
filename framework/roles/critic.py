"""One rank of a critic as a Ray actor, the driver's handle on all of them, and a policy with its critic as one learner.

To the loop it is a learner like any other. Of a batch it first asks the critic what it had expected, and the policy
what its reference says; from both come advantages and returns, on which policy and critic then train at the same time.

Dimensions: R response tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.actors.rank_group import Rank, RankGroup
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import DamagedState
from framework.files import text_digest
from framework.graph.disk import disk_errors
from framework.objectives.objective import Objective
from framework.objectives.policy import PolicyObjective
from framework.objectives.value import ValueRows, values_of
from framework.roles.batch_parts import loaded
from framework.roles.learner_group import LearnerGroup
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import TrainResult
from framework.types import Float32, Minibatch, StepResult, TrainSample, ValueSample

if TYPE_CHECKING:
    from framework.engines.trainer import Trainer

FOLDER = "critic"  # of a checkpoint
STATE = "critic.json"


@dataclass(frozen=True)
class CriticConfig:
    """What one critic rank is built from."""

    checkpoint: Path  # of a reward model, whose head it takes over, or of any model, with a new head
    engine: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    objective: Objective[Any, Any] = field(default_factory=ValueRows)
    seed: int = 0  # of a new head


class CriticWorker(Rank):
    """The rank. Calls are collective."""

    def start(self, rank: int, world: int, host: str, port: int, config: CriticConfig) -> None:
        """Join the process group and load the model; raises UserError on a bad checkpoint or topology."""
        self.join(rank, world, host, port)
        from framework.engines.sharded_load import load_sharded
        from framework.engines.trainer import Trainer

        model = load_sharded(config.checkpoint, config.engine, config.seed)
        self._trainer = Trainer(model, replace(config.engine, mtp_coef=0.0), config.objective)

    def values(self, samples: Sequence[TrainSample]) -> list[Float32]:
        """What is expected before each token of each response, [R]."""
        zeros = [np.zeros(len(sample.response_ids), np.float32) for sample in samples]
        asked = [_value_sample(sample, none, none) for sample, none in zip(samples, zeros, strict=True)]
        return self._awake.measure(asked, values_of)

    def train(self, minibatches: Sequence[Sequence[ValueSample]]) -> tuple[StepResult, ...]:
        """One optimizer step a minibatch."""
        return tuple(self._awake.steps(minibatches))

    def offload(self) -> None:
        """Leave the GPU to the samplers; any other call comes back to it first."""
        self._trainer.engine.turn.offload()

    def save(self, directory: Path) -> None:
        """Write engine state; raises UserError for a disk that is full or cannot be written."""
        with disk_errors(directory):
            self._awake.save(directory)

    def load(self, directory: Path) -> None:
        """Restore engine state."""
        self._awake.load(directory)

    @property
    def _awake(self) -> Trainer[Sequence[ValueSample], Any]:
        """The trainer, back on its GPU."""
        self._trainer.engine.turn.reload()
        return self._trainer


class ActorCritic:
    """`rl_clients.LearnerClient` of a policy's ranks and a critic's."""

    def __init__(self, policy: LearnerGroup, critic: RankGroup, objective: PolicyObjective) -> None:
        self.policy, self.critic, self.objective = policy, critic, objective
        self._kl_coef = objective.kl_coef
        self._batch: TrainBatch | None = None  # of which values and reference are awaited
        self._found: dict[RankGroup, Any] = {}  # by group, what is back of that which is awaited of both
        self._told: dict[str, float] = {}
        self._started = 0.0

    @property
    def outstanding(self) -> list[Any]:
        """References of the ranks that have not returned what was begun."""
        return [*self.policy.outstanding, *self.critic.outstanding]

    def start(self) -> None:
        """Start every rank with the first weights, in place of any that lives."""
        self._forget()
        self._kl_coef = self.objective.kl_coef
        self.critic.start()
        self.policy.start()

    def train(self, batch: TrainBatch) -> None:
        """Begin to look at a batch, to train on it; raises ResponsesLost.

        All its responses come to the driver: advantages are computed here, token by token.
        """
        batch = loaded(batch)
        samples = _samples(batch.minibatches)
        self._batch, self._started = batch, time.monotonic()
        self.critic.begin("values", samples)
        self.policy.begin("look", samples)

    def poll(self) -> TrainResult | None:
        """The result once both have trained; begins that once both have looked."""
        for group in (self.policy, self.critic):
            if group not in self._found and (result := group.poll()) is not None:
                self._found[group] = result
        if len(self._found) < 2:
            return None
        found, self._found = self._found, {}
        if self._batch is not None:
            self._train(self._batch, found[self.critic], *found[self.policy])
            return None
        trained: TrainResult = found[self.policy]
        of_critic = {f"critic/{name}": values for name, values in _means(found[self.critic]).items()}
        return replace(trained, seconds=time.monotonic() - self._started, metrics={**self._told, **of_critic})

    def _train(
        self, batch: TrainBatch, values: list[Float32], old: list[Float32] | None, reference: list[Float32]
    ) -> None:
        samples = _samples(batch.minibatches)
        if old is not None:
            samples = [replace(sample, old_logprobs=lp) for sample, lp in zip(samples, old, strict=True)]
        advantages, returns = self.objective.token_advantages(samples, values, reference, self._kl_coef)
        kl = float(np.mean([(s.sampler_logprobs - ref).sum() for s, ref in zip(samples, reference, strict=True)]))
        self._told = {"kl/sequence": kl, "kl/coef": self._kl_coef}
        if math.isfinite(kl):  # else the ranks name what is not finite, and may be told to leave out the step
            self._kl_coef = self.objective.next_kl_coef(self._kl_coef, kl)
        seen = iter(zip(samples, advantages, returns, values, strict=True))
        of_policy, of_critic = list[Minibatch](), list[list[ValueSample]]()
        for minibatch in batch.minibatches:
            own = [next(seen) for _ in minibatch.samples]
            kept = tuple(replace(sample, token_advantages=found) for sample, found, _, _ in own)
            of_policy.append(replace(minibatch, samples=kept))
            of_critic.append([_value_sample(sample, returned, value) for sample, _, returned, value in own])
        self._batch = None
        self.critic.begin("train", of_critic)
        self.policy.train(replace(batch, minibatches=tuple(of_policy)))

    def publish(self, version: int) -> Sequence[object]:
        """The policy's weights."""
        return self.policy.publish(version)

    def offload(self) -> None:
        """Leave the GPUs; whatever is called next comes back to them first."""
        self.policy.offload()
        self.critic.call("offload")

    def reset_reference(self) -> None:
        """Make the current policy the KL term's reference."""
        self.policy.reset_reference()

    def save(self, directory: Path) -> None:
        """Write both, and the coefficient of the KL term."""
        self.policy.save(directory)
        self.critic.save(directory / FOLDER)
        contents = {"kl_coef": self._kl_coef}
        (directory / STATE).write_text(json.dumps(contents | {"digest": text_digest(json.dumps(contents))}))

    def load(self, directory: Path) -> None:
        """Restore both, restarting dead ranks first. Raises DamagedState."""
        kl_coef = _read_state(directory / STATE)
        self._forget()
        self.policy.load(directory)
        self.critic.load(directory / FOLDER)
        self._kl_coef = kl_coef

    def export(self, directory: Path) -> None:
        """Write the policy for others to use."""
        self.policy.export(directory)

    def shutdown(self) -> None:
        """Kill every rank."""
        self.policy.shutdown()
        self.critic.shutdown()

    def _forget(self) -> None:
        """After a death of one group, nothing that the other had begun counts."""
        self._batch, self._found = None, {}
        for group in (self.policy, self.critic):
            if group.outstanding:
                group.shutdown()


def _read_state(file: Path) -> float:
    """The coefficient that `save` wrote; raises DamagedState."""
    try:
        contents = json.loads(file.read_text())
        digest, kl_coef = contents.pop("digest", None), float(contents["kl_coef"])  # early ones had no digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedState(str(file), str(error), "must be what the run saved") from None
    found = text_digest(json.dumps(contents))
    whole = digest == found or (digest is None and list(contents) == ["kl_coef"])
    if not whole or not math.isfinite(kl_coef):
        raise DamagedState(str(file), f"digest {found[:12]}", f"was saved with {str(digest)[:12]}: damaged since")
    return kl_coef


def _samples(minibatches: Sequence[Minibatch]) -> list[TrainSample]:
    found = [sample for minibatch in minibatches for sample in minibatch.samples]
    return [sample for sample in found if isinstance(sample, TrainSample)]


def _value_sample(sample: TrainSample, returns: Float32, values: Float32) -> ValueSample:
    return ValueSample(sample.prompt_id, sample.prompt_ids, sample.response_ids, returns, values)


def _means(steps: Sequence[StepResult]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step.metrics)
    return {name: float(np.mean([s.metrics[name] for s in steps if name in s.metrics])) for name in names}
