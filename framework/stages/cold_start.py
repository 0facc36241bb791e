"""Cold start: R1-Zero's right and readable answers, rewritten, as the first conversations that R1 learns from.

Source: DeepSeek-R1 (2501.12948v2) section B.3.2. The paper's people verified the texts; here the filters do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from framework.artifacts import ChatSet, Checkpoint, PromptSet
from framework.bounds import bounded
from framework.data.chat_template import TemplateConfig
from framework.data.rewriting import request, rewrite_by_rule
from framework.data.selection import Drop
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.chat_model import ChatModel
from framework.stages.sampled_chats import SampledConfig, chat_of, write_chat_set


@dataclass(frozen=True)
@bounded
class ColdStartConfig(SampledConfig):
    """How R1-Zero is sampled and chosen from, and who rewrites; without a writer a rule does."""

    writer: ChatModel | None = None


@dataclass(frozen=True)
class ColdStartInputs:
    """R1-Zero and its prompts; the chat model that rewrites, if there is one."""

    checkpoint: Checkpoint
    prompts: PromptSet
    writer: Checkpoint | None = None


@dataclass(frozen=True)
class ColdStarted:
    """Conversations; dropped.jsonl beside them says which response went, and why."""

    chats: ChatSet


@dataclass(frozen=True)
class ColdStart:
    """The stage. Without a writer the answers are framed by rule (`data.rewriting`): that is the laptop's way."""

    config: ColdStartConfig
    model: ModelConfig | None = None  # sizes of what is sampled, for the plan
    template: TemplateConfig = TemplateConfig()  # of R1-Zero's prompts
    writer_template: TemplateConfig = TemplateConfig()  # without a name the chat model's own

    def look_ahead(self) -> str:
        """Ask the writer's endpoint, if it is one, for its models."""
        return "" if self.config.writer is None else self.config.writer.look_ahead("stage.cold_start.writer")

    def run(self, inputs: ColdStartInputs, runtime: Runtime) -> ColdStarted:
        """Sample, choose, rewrite; raises UserError if nothing is left.

        A chat model's texts are scored and filtered as the answers were: a rewriting must still be right.
        """
        prompts = self.config.prompts(inputs.prompts)
        chosen = self.config.choose(inputs.checkpoint, prompts, self.template, runtime, "samples")
        told, dropped = chosen.described(), list(chosen.dropped)
        if not chosen.kept or (inputs.writer is None and self.config.writer is None):
            chats = [chat_of(sample, rewrite_by_rule(sample)) for sample in chosen.kept]
        else:
            requests = [request(sample) for sample in chosen.kept]
            once = replace(self.config.sampling, n=1, purpose="rewrite")
            writing = replace(self.config, sampling=once)
            asked = (self.config.writer, inputs.writer, requests, self.writer_template, runtime, "rewritten")
            written = writing.written(*asked)
            originals = {sample.id: sample for sample in chosen.kept}
            chats = [chat_of(originals[sample.prompt.id], sample.found) for sample in written.kept]
            dropped += [Drop(drop.id, f"rewritten_{drop.reason}") for drop in written.dropped]
            told += f"; rewritten: {written.described()}"
        return ColdStarted(write_chat_set(runtime, chats, dropped, told))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Sampling alone."""
        return self.config.estimate(cluster, self.model)
