"""Tuning a policy on preferences without a reward model: DPO, and with another objective IPO, KTO or ORPO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from framework.artifacts import Checkpoint
from framework.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, bounded
from framework.graph.nodes import Runtime
from framework.objectives.dpo import Dpo
from framework.objectives.objective import Objective
from framework.objectives.preference import PreferenceObjective
from framework.objectives.preference_rows import PreferenceRows
from framework.stages.judged_training import JudgedConfig, JudgedInputs, JudgedTraining
from framework.stages.preferences import Kind
from framework.stages.sft import Tuned


@dataclass(frozen=True)
@bounded
class DpoConfig(JudgedConfig):
    """Defaults: DeepSeek LLM 67B Chat (2401.02954 section 4: one epoch, 5e-6, batch 512).

    There a warm-up and a cosine are used, whose lengths are not published: here a cosine to 0, without a warm-up.
    """

    preference: PreferenceObjective = field(default_factory=Dpo)  # what is learned from preferences
    prompts_per_step: PositiveInt = 512  # with all judged pairs of each
    lr: PositiveFloat = 5e-6
    final_lr: NonNegativeFloat | None = 0.0  # reached by a cosine over all steps; null: `lr` throughout

    @property
    def kind(self) -> Kind:
        """What data it needs."""
        return self.preference.kind

    @property
    def objective(self) -> Objective[Any, Any]:
        """What is minimised."""
        return PreferenceRows(self.preference)


@dataclass(frozen=True)
class PreferenceTuning(JudgedTraining):
    """The stage: its steps follow from the data; what an answer's reference says is computed once, before the first."""

    def run(self, inputs: JudgedInputs, runtime: Runtime) -> Tuned:
        """Train to the end; resumes from the newest checkpoint in the stage's work directory."""
        out = runtime.artifact_dir("tuned")
        self.train(inputs, runtime, out)
        return Tuned(Checkpoint(out))
