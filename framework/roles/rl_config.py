"""Batch arithmetic and schedule of a GRPO run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from framework.algorithms.mismatch import MismatchConfig
from framework.bounds import Bound, NonNegativeInt, PositiveInt, bounded, divisors
from framework.engines.lr_schedule import StepwiseValue, value_at, values_of
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.types import SamplingParams


@dataclass(frozen=True)
@bounded
class RlConfig:
    """Batch arithmetic and schedule of a GRPO run. Defaults: R1-Zero (Nature, Methods), where a step is one update."""

    steps: PositiveInt = 10_400  # optimizer steps in all
    prompts_per_step: PositiveInt = 32
    group_size: PositiveInt = 16  # G; the group is the baseline, unless the algorithm has a critic
    minibatches_per_rollout: PositiveInt = 16  # optimizer steps on one batch of rollouts; one inner epoch
    max_staleness: NonNegativeInt = 0  # policy versions that a rollout may lag behind
    temperature: Annotated[float, Bound(least=0.01, most=2, note="vLLM takes no less for sampling")] = 1.0
    top_p: Annotated[float, Bound(least=1, most=1, note="the learner's logprobs are of all tokens")] = 1.0
    max_tokens: PositiveInt | StepwiseValue = 32_768  # of a response; R1-Zero: 65,536 from step 8,200 on
    late_steps: NonNegativeInt = 0  # last optimizer steps, in which the job's late prompts come beside the others
    checkpoint_every: PositiveInt = 10  # batches
    # optimizer steps between evaluations on held-out prompts, as stage.evaluate says, and after the last; 0: none
    evaluate_every: NonNegativeInt = 0
    export_every: NonNegativeInt = 0  # optimizer steps between Hugging Face exports beside the checkpoints; 0: none
    export: Literal["last", "best"] = "last"  # which policy the stage gives on; best: of those evaluated
    save_rollouts: Path | None = None  # a directory for every scored group: `rollouts_from` trains from them
    rollouts_from: Path | None = None  # train from such a directory: no sampler starts (job=grpo)
    sample_only: bool = False  # sample and score for save_rollouts: no learner starts, the policy stays the base
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
            allowed = f"must divide steps={self.steps}: {', '.join(map(str, sorted(near)))}"
            raise UserError("stage.grpo.minibatches_per_rollout", self.minibatches_per_rollout, allowed)
        each = self.minibatches_per_rollout
        if self.late_steps > self.steps:
            allowed = f"must be at most steps={self.steps}: they are the last of them"
            raise UserError("stage.grpo.late_steps", self.late_steps, allowed)
        for name in ("evaluate_every", "export_every", "late_steps"):
            if (every := getattr(self, name)) % each:
                below = every // each * each
                nearest = ", ".join(str(n) for n in (below, below + each) if n)
                allowed = f"must be a multiple of minibatches_per_rollout={each}, e.g. {nearest}; 0: never"
                raise UserError(f"stage.grpo.{name}", every, allowed)
        self._check_halves()
        if self.export == "best" and not self.evaluate_every:
            raise UserError("stage.grpo.export", "best", "needs stage.grpo.evaluate_every: nothing else tells the best")

    def _check_halves(self) -> None:
        """Raise UserError for what half of the loop cannot do."""
        if self.sample_only and self.save_rollouts is None:
            raise UserError("stage.grpo.sample_only", True, "needs stage.grpo.save_rollouts=DIR: nothing else is kept")
        half = "sample_only" if self.sample_only else "rollouts_from"
        if not (self.sample_only or self.rollouts_from):
            return
        others = ["save_rollouts", "sample_only", "evaluate_every"] if self.rollouts_from else ["evaluate_every"]
        for name in [*others, *(["export_every"] if self.sample_only else [])]:
            if value := getattr(self, name):
                shown = str(value) if isinstance(value, Path) else value
                raise UserError(f"stage.grpo.{name}", shown, f"must be left out with stage.grpo.{half}")

    @property
    def late_from(self) -> int:
        """The first of the late prompts' tickets: where groups are replaced (DAPO) they come that much earlier."""
        return (self.steps - self.late_steps) * self.prompts_per_step

    def takes_turns(self, cluster: ClusterConfig) -> bool:
        """Whether sampler and learner have the same GPUs, one at a time."""
        return cluster.turns and not (self.sample_only or self.rollouts_from)

    def evaluates_at(self, step: int) -> bool:
        """Whether the policy after `step` optimizer steps is evaluated."""
        return bool(self.evaluate_every and step) and (step % self.evaluate_every == 0 or step == self.steps)

    def exports_at(self, step: int) -> bool:
        """Whether the policy after `step` optimizer steps is exported."""
        return bool(self.export_every and step) and step % self.export_every == 0

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
