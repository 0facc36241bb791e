"""What R1's third stage learns besides reasoning: writing, facts, who the assistant is, translation, what to decline.

R1 reuses what V3 was fine-tuned on, and has V3 write reasoning for some of it, none for simple requests (R1 v2 section
B.3.3). With a writer this stage asks that chat model; without one the answers come from templates (`data.general`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from framework.artifacts import ChatSet, Checkpoint, PromptSet
from framework.bounds import NonNegativeInt, Probability, bounded
from framework.data.chat_template import TemplateConfig
from framework.data.general import KINDS, General, general_requests
from framework.data.readers import read_prompts, write_prompts
from framework.data.reasoning import Reasoned
from framework.data.rewriting import answer_request
from framework.data.selection import Sample, Selection, SelectionConfig
from framework.data.splits import share_out
from framework.errors import UserError, did_you_mean
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.rewards.unscored import unscored
from framework.stages.chat_model import ChatModel
from framework.stages.sampled_chats import SampledConfig, chat_of, write_chat_set
from framework.types import Prompt


@dataclass(frozen=True)
@bounded
class V3DataConfig(SampledConfig):
    """Requests by kind, which rewards score them later on; and how a writer is sampled, where there is one."""

    kinds: Mapping[str, NonNegativeInt] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))  # requests; 0: all
    heldout_share: Probability = 0.1  # of all different requests
    # R1 v2 eq. 8-10; a request belongs to the helpful or to the safety set
    helpful_rewards: tuple[str, ...] = ("helpful", "format", "language")
    safety_rewards: tuple[str, ...] = ("safety", "format", "language")
    select: SelectionConfig = SelectionConfig(right_by=())  # nothing says what is right here
    writer: ChatModel | None = None  # who answers; without one the templates' own answers stand

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds:
            raise UserError("kinds", {}, f"must name at least one of {', '.join(KINDS)}")
        for kind, wanted in self.kinds.items():
            if kind not in KINDS:
                raise UserError(f"kinds.{kind}", wanted, f"{did_you_mean(kind, KINDS)}kinds are {', '.join(KINDS)}")

    def requests(self, seed: int) -> list[General]:
        """Return the requests of the templates, their kinds mixed: whoever takes the first of them has some of each."""
        wanted = [found for kind, most in self.kinds.items() for found in general_requests(kind, seed)[: most or None]]
        random.Random(seed).shuffle(wanted)
        return wanted

    def scored(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the rewards of its set, unless it names its own."""
        rewards = self.safety_rewards if prompt.columns.get("decline") else self.helpful_rewards
        return prompt if prompt.rewards else replace(prompt, rewards=rewards)


@dataclass(frozen=True)
class V3DataInputs:
    """Both may stay away: requests of your own, and the chat model that answers them."""

    prompts: PromptSet | None = None
    writer: Checkpoint | None = None


@dataclass(frozen=True)
class V3Data:
    """Conversations to learn, and the requests as prompts: those to train on are the same, others are held out."""

    chats: ChatSet
    prompts: PromptSet


@dataclass(frozen=True)
class MakeV3Data:
    """The stage."""

    config: V3DataConfig
    model: ModelConfig | None = None  # sizes of the writer, for the plan; None: there is no writer
    template: TemplateConfig = TemplateConfig()  # of the writer's prompts; without a name its own

    def look_ahead(self) -> str:
        """Ask the writer's endpoint, if it is one, for its models."""
        return "" if self.config.writer is None else self.config.writer.look_ahead("stage.v3_data.writer")

    def run(self, inputs: V3DataInputs, runtime: Runtime) -> V3Data:
        """Write both sets; raises UserError for requests of your own that nobody can answer."""
        answers = {found.prompt().id: found.answer for found in self.config.requests(runtime.seed)}
        if inputs.prompts is not None:
            if inputs.writer is None and self.config.writer is None:
                allowed = "requests of your own need a writer: a chat model that answers them"
                raise UserError(f"stage.{runtime.node}", str(inputs.prompts.path), allowed)
            train, heldout = (read_prompts(inputs.prompts.path / f"{split}.jsonl") for split in ("train", "heldout"))
        else:
            found = [general.prompt() for general in self.config.requests(runtime.seed)]
            train, heldout = share_out(found, self.config.heldout_share)
        chosen = self._answered(train, answers, inputs.writer, runtime)
        chats = [chat_of(sample, sample.found) for sample in chosen.kept]
        written = write_chat_set(runtime, chats, chosen.dropped, chosen.described())
        directory = runtime.artifact_dir("prompts")
        for split, prompts in (("train", train), ("heldout", heldout)):
            write_prompts(directory / f"{split}.jsonl", map(self.config.scored, prompts))
        return V3Data(written, PromptSet(directory))

    def _answered(
        self, train: tuple[Prompt, ...], answers: Mapping[str, Reasoned], writer: Checkpoint | None, runtime: Runtime
    ) -> Selection:
        if writer is None and self.config.writer is None:
            return Selection([Sample(f"{prompt.id}#0", prompt, answers[prompt.id]) for prompt in train])
        asked = {prompt.id: prompt for prompt in train[: self.config.most_prompts or None]}
        requests = [answer_request(replace(prompt, rewards=())) for prompt in asked.values()]
        unjudged = replace(self.config, reward=unscored())  # no rule knows a good answer
        chosen = unjudged.written(self.config.writer, writer, requests, self.template, runtime, "answers")
        kept = [replace(sample, prompt=asked[sample.prompt.id]) for sample in chosen.kept]
        return Selection(kept, chosen.dropped)

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Sampling alone, where there is a writer."""
        return self.config.estimate(cluster, self.model)
