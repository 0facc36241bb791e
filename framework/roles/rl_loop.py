"""Group relative policy optimisation as a loop over roles.

    while batches are left:
        issue prompts            to rollout workers that serve the newest weights
        collect groups           G responses each, and hand them to the reward workers
        collect rewards
        train                    on the first whole batch: advantages, minibatches, one optimizer step each
        publish                  the next policy version; checkpoint ledger and learner together
    evaluate, export         where a step is due: nothing is trained meanwhile

                 ┌───────────────────── give back: a worker died ─────────────────────┐
                 ▼                                                                    │
    ledger ──issue──> rollout workers ──group──> reward workers ──scores──> ledger: batches ──train──> learner
                            ▲                                                                            │
                            └────────────────────────── weights of the next version ─────────────────────┘

    queue           filled by          drained by              at most                          waits for
    tickets         the ledger         `_issue`                P (k + 1), beyond those trained  trained batches
    being sampled   `_issue`           rollout workers         max_num_seqs // G + 1 a worker   the newest weights
    being scored    `_collect_groups`  free reward workers     live tickets                     a free worker
    whole batches   `_collect_scores`  `_train`, oldest first  k + 1                            an idle learner
    weights         `_publish`         rollout workers         the newest version               their acknowledgement

P prompts make a batch, G responses each, k is `max_staleness`. Nothing blocks: each step of the loop moves what can be
moved, and `wait` sleeps until a role has a result.

With `max_staleness: 0` sampling waits for training (synchronous GRPO); with k, rollouts run up to k versions ahead.
With `turns` sampler and learner have the same GPUs, one at a time: samplers sleep -> train -> save -> publish -> the
learner leaves the GPUs -> samplers wake with the new version.
Source: DeepSeek-R1 (2501.12948v2) section 2.1 and B.1.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from framework.actors.rank_group import RanksLost
from framework.data.shuffle import seed_of
from framework.errors import DamagedState, ResponsesLost, RunFailed, Stopped
from framework.files import clear_way
from framework.graph.exports import EXPORTS, export_name
from framework.objectives.policy import PolicyObjective
from framework.observe.phases import PhaseClock
from framework.protocols import Tracker
from framework.roles.ledger import FinishedTicket, Ledger
from framework.roles.recorded import RolloutSaver
from framework.roles.reward import check_refills, check_scores, failures
from framework.roles.reward_watch import WATCHED_BATCHES, RewardWatch
from framework.roles.rl_batch import build_batch, sample_rows, with_finite_totals
from framework.roles.rl_clients import LearnerClient, Rewards, Rollouts, TrainResult
from framework.roles.rl_config import RlConfig
from framework.roles.rl_evaluation import Evaluation, HeldOut
from framework.roles.rl_report import batch_report, expert_load
from framework.rotation import Checkpoints
from framework.stored import Sampled, scored_group

LEDGER = "ledger.jsonl"
logger = logging.getLogger("framework")


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
    turns: bool = False  # on the GPUs; needs max_staleness 0
    saver: RolloutSaver | None = None  # writes every scored group
    held_out: HeldOut | None = None  # what `evaluate_every` asks
    finish_export: Callable[[Path], None] = lambda directory: None  # adds what a policy needs beside its weights
    version: int = field(default=0, init=False)  # newest published policy version = batches trained
    _training: list[FinishedTicket] | None = field(default=None, init=False)
    _groups: dict[int, Sampled] = field(default_factory=dict, init=False)  # being scored
    _evaluation: Evaluation | None = field(default=None, init=False)  # under way
    _clock: PhaseClock = field(default_factory=PhaseClock, init=False)
    _watch: RewardWatch = field(init=False)
    _told: str = field(default="", init=False)  # of the last batch
    _furthest: int = field(default=0, init=False)  # most batches trained before any death
    _learner_deaths: int = field(default=0, init=False)  # since then

    def __post_init__(self) -> None:
        watched = min(WATCHED_BATCHES, self.config.batches)
        self._watch = RewardWatch(first=watched * self.config.prompts_per_batch)

    def run(self) -> None:
        """Train every batch. Raises MismatchTooLarge, RunFailed, Stopped or UserError."""
        while True:
            try:
                self._resume()
                self._train_batches()
                return self._finish()
            except (RanksLost, ResponsesLost) as error:
                self._lost(error)

    def _train_batches(self) -> None:
        self._clock.finish_batch()  # what resuming took is no batch's
        while self.ledger.batches_trained < self.config.batches:
            if self.should_stop() and self._training is None:  # what is being sampled is sampled again on resuming
                self._stop()
            if not self._issue() + self._collect_groups() + self._collect_scores() + self._train() + self._learn():
                self._tell()
                self.wait()

    def _tell(self) -> None:
        """Show what is awaited behind what the last batch came to."""
        there = f"{len(self.ledger.scored())} of {self.config.prompts_per_batch} prompts sampled and scored"
        sampling = there if self.rollouts.synced() else "samplers start, or take new weights"
        awaited = sampling if self._training is None else "training"
        self.tracker.progress(self._steps, self.config.steps, f"{self._told}now: {awaited}")

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
            if ticket < 0:
                assert self._evaluation is not None
                self._evaluation.sampled(ticket, group, self.rewards)
            elif group is None:
                self.ledger.give_back([ticket])
            else:
                self._clock.sampled(ticket)
                self._groups[ticket] = group
                self.rewards.submit(ticket, group)
        return len(results)

    def _collect_scores(self) -> int:
        """Enter scored groups in the ledger; those of a dead worker are scored again, lost ones sampled again."""
        results = [(t, with_finite_totals(s) if isinstance(s, tuple) else s) for t, s in self.rewards.poll()]
        for ticket, scores in results:
            if ticket < 0:
                assert self._evaluation is not None
                held_out = self._evaluation.scored(ticket, scores, self.rewards)
                if held_out is not None:
                    self._watch.told(held_out)
                continue
            if scores is None:
                self.rewards.submit(ticket, self._groups[ticket])
                continue
            group = self._groups.pop(ticket)
            if isinstance(scores, ResponsesLost):
                self.ledger.give_back([ticket])
                continue
            scored = scored_group(group, scores)
            self._clock.scored(ticket)
            refill = not self.algorithm.wants(scored)
            self.ledger.finish(ticket, scored, refill)
            if self._watch.arrived(scored):
                self._check_failures()
            if refill:
                self._check_refills()
        if lost := [scores for _, scores in results if isinstance(scores, ResponsesLost)]:
            print(f"responses to {len(lost)} prompts lost ({lost[0]}): they are sampled again", flush=True)
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
        check_refills(self.ledger.refilled, self.config.max_refill_batches, size, live)

    def _train(self) -> int:
        """Hand the next whole batch to an idle learner, where they take turns once every sampler sleeps."""
        if self._training is not None or not self.ledger.batch_ready():
            return 0
        if self.turns and not self.rollouts.sleep():
            return 0
        self._training = self.ledger.batch()
        self._clock.training()
        scored = [item.scored for item in self._training]
        discarded = self.ledger.discarded(self._training)
        check_scores([*scored, *(item.scored for item in discarded)], self.max_failed_share)
        if self.saver is not None:
            self.saver.write(self.ledger.batches_trained, [*self._training, *discarded])
        config = self.config
        each, probe, gate = config.minibatches_per_rollout, config.probe_responses, config.mismatch
        batch = build_batch(scored, self.algorithm, each, self.version, probe, self.ledger.seed, gate)
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
        trained, evaluates = self.ledger.batches_trained, self.config.evaluates_at(self._steps)
        saves = evaluates or trained == self.config.batches or trained % self.config.checkpoint_every == 0
        exports = self.config.exports_at(self._steps)
        if self.turns:  # while the GPUs are the learner's
            self._write(saves, exports)
        self._publish(trained)
        phases = self._clock.finish_batch()
        if not (saves or exports) and not self.should_stop():
            self._train()  # the learner goes on while the last batch is recorded
        self._record(batch, discarded, result, phases)
        if not self.turns:
            self._write(saves, exports)
        if evaluates:
            self._evaluate()
        return 1

    def _write(self, saves: bool, exports: bool) -> None:
        """What is due after a batch. What is evaluated can be the best, so it is saved before."""
        if saves:
            self._save()
        if exports:
            self._export_step()

    @property
    def _steps(self) -> int:
        """Optimizer steps taken."""
        return self.ledger.batches_trained * self.config.minibatches_per_rollout

    def _stop(self) -> None:
        self._take_gpus()
        self._save()
        raise Stopped(f"stopped after {self._steps} of {self.config.steps} steps; the same command resumes")

    def _publish(self, version: int) -> None:
        self._clock.published()
        weights = self.learner.publish(version)
        if self.turns:
            self.learner.offload()
        self.rollouts.publish(version, weights)
        self.version = version

    def _take_gpus(self) -> None:
        """Where they take turns, wait until the GPUs are the learner's; what is being sampled is given up."""
        if self.turns:
            self.rollouts.forget()
            while not self.rollouts.sleep():
                self.rollouts.poll()
                self.wait()

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
        metrics = batch_report(scored, [item.scored for item in discarded], result, phases, self.version - 1)
        if result.mismatch is not None and not result.mismatch.tokens:
            print(f"step {step}: mismatch not measured, the learner has no version that sampled", flush=True)
        if (load_LE := expert_load(result.steps)) is not None:
            self.tracker.expert_load(step, load_LE)
        self.tracker.log(step, metrics)
        if self.version % self.config.samples_every == 1 or self.config.samples_every == 1:
            self.tracker.samples(step, sample_rows(scored, self.algorithm))
        reward, length, seconds = (metrics[name] for name in ("reward/mean", "response/length_mean", "time/step_s"))
        self._told = f"reward {reward:.3f}  length {length:.1f}  {seconds:.2f} s a batch  "
        self.tracker.progress(step, self.config.steps, self._told)

    def _evaluate(self) -> None:
        """Ask the rollout workers the held-out prompts, at the newest version; nothing is trained until all are scored.

        The checkpoint of this version is on the disk: a stop or a death here costs the evaluation alone.
        """
        assert self.held_out is not None
        began, done, total = time.monotonic(), 0, len(self.held_out.prompts)
        self._evaluation = running = Evaluation(self.held_out, self.ledger.seed)
        while not running.done:
            if self.should_stop():
                self._stop()
            self.learner.poll()  # a death shows here
            if not running.issue(self.rollouts) + self._collect_groups() + self._collect_scores():
                self.wait()
            if len(running.groups) > done:
                done = len(running.groups)
                self.tracker.progress(self._steps, self.config.steps, f"evaluating: {done} of {total} prompts")
        self._evaluation = None
        check_scores(running.groups, self.max_failed_share)
        numbers = dict(self.held_out.numbers(running.groups))
        name, score = next(iter(numbers.items()), ("no verdict", math.nan))
        self.tracker.log(self._steps, {**numbers, "time/evaluate_s": time.monotonic() - began})
        record = {"step": self._steps, **numbers}
        best = Checkpoints(self.directory).evaluate(self.ledger.batches_trained, score, record)
        told = ", the best so far" if best else ""
        logger.info(
            "step %d: %s %.3f on %d held-out prompts%s", self._steps, name.rpartition("/")[2], score, total, told
        )
        self._clock.finish_batch()  # this time is no batch's

    def _export_step(self) -> None:
        """Write the policy as it is now, for others to try; a death leaves no half of it under its name."""
        final = self.directory / EXPORTS / export_name(self._steps)
        building = final.with_name(f".{final.name}")
        clear_way(building)
        self.learner.export(building)
        self.finish_export(building)
        clear_way(final)
        building.rename(final)
        self._clock.finish_batch()

    def _finish(self) -> None:
        """Export the policy that the stage gives on."""
        self._take_gpus()
        best = Checkpoints(self.directory).best() if self.config.export == "best" else None
        if best is not None:
            try:
                self.learner.load(best)
                logger.info("the policy is that of %s, the best of those evaluated", best.name)
            except DamagedState as error:
                logger.warning("the best checkpoint is damaged (%s): the policy is the last one", error)
                self.learner.load(Checkpoints(self.directory).newest() or best)
        self.learner.export(self.policy)

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

        self._take_gpus()
        if Checkpoints(self.directory).restore(load):
            self.tracker.rewind(self._steps)
        else:
            self.learner.start()
            if self.algorithm.kl_coef:
                self.learner.reset_reference()
            self._save()
        if self.saver is not None:
            self.saver.begin(self.ledger.batches_trained)
        if self.config.exports_at(self._steps) and not (self.directory / EXPORTS / export_name(self._steps)).is_dir():
            self._export_step()
        self._publish(self.ledger.batches_trained)
        if self.config.evaluates_at(self._steps) and not Checkpoints(self.directory).evaluated(self.version):
            self._evaluate()  # the last process did not get to it

    def _lost(self, error: RanksLost | ResponsesLost) -> None:
        """After a learner's death, or a batch's, forget what is under way: `_resume` goes back to a checkpoint."""
        self._learner_deaths += 1
        if self._learner_deaths > self.config.max_learner_restarts:
            times = f"{self._learner_deaths} times without a batch trained in between"
            raise RunFailed(f"the learner died {times}; the last time: {error}") from error
        lost, again = ("learner", "restarting it") if isinstance(error, RanksLost) else ("batch", "sampling it again")
        print(f"{lost} lost ({error}); {again} from the newest checkpoint", flush=True)
        self._training = self._evaluation = None
        self._groups.clear()
        self.rollouts.forget()
        self.rewards.forget()
