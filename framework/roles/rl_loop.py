"""Group relative policy optimisation as a loop over roles.

    while batches are left:
        issue prompts            to rollout workers that serve the newest weights
        collect groups           G responses each, and hand them to the reward workers
        collect rewards
        train                    on the first whole batch: advantages, minibatches, one optimizer step each
        publish                  the next policy version; checkpoint ledger and learner together

With `max_staleness: 0` sampling waits for training (synchronous GRPO); with k, rollouts run up to k versions ahead.
Source: DeepSeek-R1 (2501.12948v2) section 2.1 and B.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from framework.algorithms.balance import load_imbalance
from framework.algorithms.mismatch import MismatchConfig
from framework.bounds import Bound, NonNegativeInt, PositiveInt, bounded, count_of, divisors
from framework.data.shuffle import seed_of
from framework.engines.lr_schedule import StepwiseValue, value_at, values_of
from framework.errors import RunFailed, Stopped, UserError
from framework.objectives.policy import PolicyObjective
from framework.protocols import Tracker
from framework.roles.checkpoints import Checkpoints
from framework.roles.ledger import FinishedTicket, Ledger
from framework.roles.phases import PhaseClock
from framework.roles.reward import check_scores, failures
from framework.roles.reward_watch import RewardWatch
from framework.roles.rl_batch import (
    batch_metrics,
    build_batch,
    mismatch_metrics,
    sample_rows,
    step_metrics,
    with_finite_totals,
)
from framework.roles.rl_clients import LearnerClient, LearnerLost, Rewards, Rollouts, TrainResult
from framework.types import ResponseGroup, SamplingParams, ScoredGroup

LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
@bounded
class RlConfig:
    """Batch arithmetic and schedule of a GRPO run. Defaults: R1-Zero (Nature, Methods), where a step is one update."""

    steps: PositiveInt = 10_400  # optimizer steps in all
    prompts_per_step: PositiveInt = 32
    group_size: Annotated[int, count_of(2, "the group is the baseline")] = 16  # G
    minibatches_per_rollout: PositiveInt = 16  # optimizer steps on one batch of rollouts; one inner epoch
    max_staleness: NonNegativeInt = 0  # policy versions that a rollout may lag behind
    temperature: Annotated[float, Bound(above=0, most=2, note="logprobs are at temperature")] = 1.0
    top_p: Annotated[float, Bound(least=1, most=1, note="the learner's logprobs are of all tokens")] = 1.0
    max_tokens: PositiveInt | StepwiseValue = 32_768  # of a response; R1-Zero: 65,536 from step 8,200 on
    checkpoint_every: PositiveInt = 10  # batches
    samples_every: PositiveInt = 10  # batches between tables of sample responses
    # responses a batch whose logprobs are recomputed to measure the mismatch; 0: none
    probe_responses: NonNegativeInt = 16
    mismatch: MismatchConfig = MismatchConfig()
    max_learner_restarts: NonNegativeInt = 5  # in a row; a batch that was never trained before starts the count anew
    max_refill_batches: PositiveInt = 10  # batches of groups without signal that a batch may have replaced (DAPO's)

    def __post_init__(self) -> None:
        if min(values_of(self.max_tokens)) < 1:
            raise UserError("stage.grpo.max_tokens", self.max_tokens, "must be at least 1")
        if self.steps % self.minibatches_per_rollout:
            near = sorted(divisors(self.steps), key=lambda m: abs(m - self.minibatches_per_rollout))[:5]
            allowed = f"must divide stage.grpo.steps={self.steps}: {', '.join(map(str, sorted(near)))}"
            raise UserError("stage.grpo.minibatches_per_rollout", self.minibatches_per_rollout, allowed)

    @property
    def batches(self) -> int:
        """Rollout batches, and so published versions, of the whole run."""
        return self.steps // self.minibatches_per_rollout

    @property
    def prompts_per_batch(self) -> int:
        """P."""
        return self.prompts_per_step * self.minibatches_per_rollout

    @property
    def longest(self) -> int:
        """Tokens of the longest response of the whole run."""
        return int(max(values_of(self.max_tokens)))

    def sampling(self, step: int, seed: int | None = None) -> SamplingParams:
        """How responses are sampled for a batch issued at optimizer step `step`, from 0."""
        limit = int(value_at(self.max_tokens, step))
        return SamplingParams(self.temperature, self.top_p, limit, self.group_size, seed)


@dataclass
class RlLoop:
    """The GRPO loop. `run` returns once the trained policy is exported, and resumes from `directory`."""

    config: RlConfig
    algorithm: PolicyObjective
    ledger: Ledger
    rollouts: Rollouts
    rewards: Rewards
    learner: LearnerClient
    tracker: Tracker
    directory: Path  # checkpoints
    policy: Path  # where the trained policy goes
    should_stop: Callable[[], bool] = lambda: False
    wait: Callable[[], None] = lambda: time.sleep(0.002)  # a moment, or until any role has a result
    max_failed_share: float = 0.05
    version: int = field(default=0, init=False)  # newest published policy version = batches trained
    _training: list[FinishedTicket] | None = field(default=None, init=False)
    _groups: dict[int, ResponseGroup] = field(default_factory=dict, init=False)  # being scored
    _clock: PhaseClock = field(default_factory=PhaseClock, init=False)
    _watch: RewardWatch = field(default_factory=RewardWatch, init=False)
    _furthest: int = field(default=0, init=False)  # most batches trained before any death
    _learner_deaths: int = field(default=0, init=False)  # since then

    def run(self) -> None:
        """Train every batch. Raises MismatchTooLarge, RunFailed, Stopped or UserError."""
        while True:
            try:
                self._resume()
                self._train_batches()
                return self.learner.export(self.policy)
            except LearnerLost as error:
                self._lost(error)

    def _train_batches(self) -> None:
        self._clock.finish_batch()  # what resuming took is no batch's
        while self.ledger.batches_trained < self.config.batches:
            if self.should_stop() and self._training is None:  # what is being sampled is sampled again on resuming
                self._stop()
            if not self._issue() + self._collect_groups() + self._collect_scores() + self._train() + self._learn():
                self.wait()

    def _issue(self) -> int:
        """Give prompts to workers that serve the newest weights, as far as staleness allows."""
        left = self.config.batches * self.config.prompts_per_batch  # never issue what will not be trained
        left -= self.ledger.batches_trained * self.config.prompts_per_batch + self.ledger.live
        count = min(self.ledger.to_issue(self.version), self.rollouts.free_slots(), left)
        for _ in range(count):
            ticket = self.ledger.issue(self.version)
            params = self.config.sampling(self._steps, seed_of(self.ledger.seed, self.version, ticket))
            self.rollouts.submit(ticket, self.ledger.prompt(ticket), params)
            self._clock.issued(ticket)
        return max(count, 0)

    def _collect_groups(self) -> int:
        """Pass sampled groups on to the reward workers; prompts of a dead worker are issued again."""
        results = self.rollouts.poll()
        if self.rollouts.synced():
            self._clock.acknowledged()
        for ticket, group in results:
            if group is None:
                self.ledger.give_back([ticket])
            else:
                self._clock.sampled(ticket)
                self._groups[ticket] = group
                self.rewards.submit(ticket, group)
        return len(results)

    def _collect_scores(self) -> int:
        """Enter scored groups in the ledger; groups of a dead reward worker are scored again."""
        results = self.rewards.poll()
        for ticket, scores in results:
            if scores is None:
                self.rewards.submit(ticket, self._groups[ticket])
                continue
            scored = ScoredGroup(self._groups.pop(ticket), with_finite_totals(scores))
            self._clock.scored(ticket)
            refill = not self.algorithm.wants(scored)
            self.ledger.finish(ticket, scored, refill)
            if self._watch.arrived(scored):
                self._check_failures()
            if refill:
                self._check_refills()
        return len(results)

    def _check_failures(self) -> None:
        """Stop as soon as some batch that is being collected must have more failed samples than allowed."""
        live = self.config.prompts_per_batch * self.config.group_size * (self.config.max_staleness + 1)
        found = self.ledger.scored()
        if self.algorithm.filter_on is None and len(failures(found)) > self.max_failed_share * live:
            check_scores(found, self.max_failed_share)

    def _check_refills(self) -> None:
        """Stop where no batch would ever be whole: rewards that all fail, or that are all equal."""
        size, live = self.config.prompts_per_batch, self.config.max_staleness + 1
        if self.ledger.refilled >= size:
            check_scores(self.ledger.scored(), self.max_failed_share)
        if self.ledger.refilled > self.config.max_refill_batches * size * live:
            bound = f"stage.grpo.max_refill_batches={self.config.max_refill_batches} of {size} prompts"
            raise RunFailed(
                f"no batch has come together: more groups than {bound} had rewards all equal; take prompts that the "
                "policy solves neither always nor never, larger groups (stage.grpo.group_size), or "
                "algorithm.filter_on=null"
            )

    def _train(self) -> int:
        """Hand the next whole batch to an idle learner."""
        if self._training is not None or not self.ledger.batch_ready():
            return 0
        self._training = self.ledger.batch()
        self._clock.training()
        scored = [item.scored for item in self._training]
        discarded = [item.scored for item in self.ledger.discarded(self._training)]
        check_scores(scored + discarded, self.max_failed_share)
        probe = self.config.probe_responses
        batch = build_batch(
            scored,
            self.algorithm,
            self.config.minibatches_per_rollout,
            self.version,
            probe,
            self.ledger.seed,
            self.config.mismatch,
        )
        self.learner.train(batch)
        return 1

    def _learn(self) -> int:
        """Take the learner's result: ledger, checkpoint, next version."""
        if (result := self.learner.poll()) is None:
            return 0
        assert self._training is not None
        batch, self._training = self._training, None
        discarded = self.ledger.discarded(batch)
        self.ledger.train(batch)
        if self.ledger.batches_trained > self._furthest:
            self._furthest, self._learner_deaths = self.ledger.batches_trained, 0
        every = self.algorithm.reference_reset_steps  # a multiple of a batch's steps
        if self.algorithm.kl_coef and every and self._steps % every == 0:
            self.learner.reset_reference()
        self._publish(self.ledger.batches_trained)
        phases = self._clock.finish_batch()
        saves = self.version == self.config.batches or self.version % self.config.checkpoint_every == 0
        if not saves and not self.should_stop():
            self._train()  # the learner goes on while the last batch is recorded
        self._record(batch, discarded, result, phases)
        if saves:
            self._save()
        return 1

    @property
    def _steps(self) -> int:
        """Optimizer steps taken."""
        return self.ledger.batches_trained * self.config.minibatches_per_rollout

    def _stop(self) -> None:
        self._save()
        raise Stopped(f"stopped after {self._steps} of {self.config.steps} steps; the same command resumes")

    def _publish(self, version: int) -> None:
        self._clock.published()
        self.rollouts.publish(version, self.learner.publish(version))
        self.version = version

    def _record(
        self,
        batch: Sequence[FinishedTicket],
        discarded: Sequence[FinishedTicket],
        result: TrainResult,
        phases: Mapping[str, float],
    ) -> None:
        """Log one batch; its x axis is the optimizer steps taken."""
        step = self._steps
        scored = [item.scored for item in batch]
        metrics = batch_metrics(scored, [item.scored for item in discarded], self.version - 1)
        metrics |= step_metrics(result.steps)
        if result.mismatch is not None:
            metrics |= mismatch_metrics(result.mismatch)
            if not result.mismatch.tokens:
                print(f"step {step}: mismatch not measured, the learner has no version that sampled", flush=True)
        metrics |= {**phases, "time/train_s": result.seconds}
        seconds = metrics["time/step_s"]
        sampled = [item.scored.group for item in (*batch, *discarded)]
        metrics["sampled_tokens_per_s"] = sum(len(r.token_ids) for g in sampled for r in g.responses) / seconds
        metrics["trained_tokens_per_s"] = result.tokens / seconds
        loads = [one.expert_load_LE for one in result.steps if one.expert_load_LE is not None]
        if loads:
            load_LE = np.sum(loads, axis=0)
            metrics["experts/max_over_mean"] = float(load_imbalance(torch.from_numpy(load_LE)).mean())
            self.tracker.expert_load(step, load_LE)
        self.tracker.log(step, metrics)
        self._watch.trained(scored)
        if self.version % self.config.samples_every == 1 or self.config.samples_every == 1:
            self.tracker.samples(step, sample_rows(scored, self.algorithm))
        reward, length = metrics["reward/mean"], metrics["response/length_mean"]
        self.tracker.progress(
            step, self.config.steps, f"reward {reward:.3f}  length {length:.1f}  {seconds:.2f} s a batch"
        )

    def _save(self) -> None:
        """Write learner and ledger as one checkpoint."""

        def write(directory: Path) -> None:
            self.learner.save(directory)
            self.ledger.save(directory / LEDGER)

        Checkpoints(self.directory).save(self.ledger.batches_trained, write)

    def _resume(self) -> None:
        """Continue from the newest checkpoint that is not damaged, or make the first one."""

        def load(checkpoint: Path) -> None:
            self.ledger.load(checkpoint / LEDGER)
            self.learner.load(checkpoint)

        if Checkpoints(self.directory).restore(load):
            self.tracker.rewind(self._steps)
        else:
            self.learner.start()
            if self.algorithm.kl_coef:
                self.learner.reset_reference()
            self._save()
        self._publish(self.ledger.batches_trained)

    def _lost(self, error: LearnerLost) -> None:
        """After a learner's death, forget what is under way: `_resume` goes back to the newest checkpoint."""
        self._learner_deaths += 1
        if self._learner_deaths > self.config.max_learner_restarts:
            times = f"{self._learner_deaths} times without a batch trained in between"
            raise RunFailed(f"the learner died {times}; the last time: {error}") from error
        print(f"learner lost ({error}); restarting it from the newest checkpoint", flush=True)
        self._training = None
        self._groups.clear()
        self.rollouts.forget()
        self.rewards.forget()
