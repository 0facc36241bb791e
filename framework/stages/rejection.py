"""Rejection sampling: many responses a prompt, of which the right and readable ones become conversations.

Source: DeepSeek-R1 (2501.12948v2) section B.3.3: many samples a prompt from the model of the first RL stage, the right
ones kept, without mixed languages, long paragraphs and code blocks. A prompt without a rule names a judge among its
rewards, which is given the reference; `select.right_by` says which reward decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from framework.artifacts import ChatSet, Checkpoint, PromptSet
from framework.data.chat_template import TemplateConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.sampled_chats import SampledConfig, chat_of, write_chat_set


@dataclass(frozen=True)
class RejectionInputs:
    """The model that answers, and its prompts."""

    checkpoint: Checkpoint
    prompts: PromptSet


@dataclass(frozen=True)
class Rejected:
    """Conversations; dropped.jsonl beside them says which response went, and why."""

    chats: ChatSet


@dataclass(frozen=True)
class RejectionSampling:
    """The stage."""

    config: SampledConfig
    model: ModelConfig | None = None  # sizes of what is sampled, for the plan
    template: TemplateConfig = TemplateConfig()  # of the prompts; without a name the checkpoint's own

    def run(self, inputs: RejectionInputs, runtime: Runtime) -> Rejected:
        """Sample and choose; raises UserError if nothing is left."""
        prompts = self.config.prompts(inputs.prompts)
        chosen = self.config.choose(inputs.checkpoint, prompts, self.template, runtime, "samples")
        chats = [chat_of(sample, sample.found) for sample in chosen.kept]
        return Rejected(write_chat_set(runtime, chats, chosen.dropped, chosen.described()))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Sampling alone."""
        return self.config.estimate(cluster, self.model)
