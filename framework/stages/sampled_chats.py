"""Conversations from a checkpoint's own responses: sampled, scored, chosen, and each that went written down.

What the stages of cold start and rejection sampling share. Groups are kept in the stage's own directory as they finish,
so a killed stage samples only what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from framework.artifacts import ChatSet, Checkpoint, PromptSet
from framework.bounds import NonNegativeInt, PositiveInt, bounded
from framework.data.chat_shards import Chat
from framework.data.chat_template import TemplateConfig
from framework.data.readers import read_prompts, write_rows
from framework.data.reasoning import Reasoned, split_reasoning
from framework.data.selection import Drop, Sample, Selection, SelectionConfig, check_right_by, select
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.rewards.base import RewardConfig
from framework.rewards.isolation import IsolatedScorer
from framework.roles.reward import check_scores
from framework.stages.chat_model import ChatModel, ask_endpoint
from framework.stages.read_samples import check_sampling, fit_engine, sampling_estimate
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import Sampling, SamplingConfig
from framework.types import Prompt, ScoredGroup

DROPPED = "dropped.jsonl"  # beside a set: {"id", "reason"} a line; the manifest counts them by reason


@dataclass(frozen=True)
@bounded
class SampledConfig:
    """Which prompts are sampled, how, by what they are scored, and which responses stay."""

    sampling: SamplingConfig = SamplingConfig()
    select: SelectionConfig = SelectionConfig()
    most_prompts: NonNegativeInt = 0  # the first of the train prompts; 0: all
    expected_prompts: PositiveInt = 88_000  # that the plan counts on where only the run knows how many there are
    reward: RewardConfig = field(kw_only=True)  # what scores a response
    engine: VllmConfig = VllmConfig()  # the sampler's

    inherits: ClassVar[Mapping[str, str]] = {"reward": "reward", "engine": "engine.rollout"}

    def __post_init__(self) -> None:
        check_right_by(self.select.right_by, self.reward.components, "select.right_by")

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engine, for the model on the cluster."""
        return fit_engine(self.engine, self.sampling.max_tokens, model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        check_sampling("sampling", self.sampling, self.engine)
        cluster.check_sampling_gpus(self.engine.tensor_parallel_size)

    def prompts(self, found: PromptSet) -> tuple[Prompt, ...]:
        """Return the train prompts to sample."""
        return read_prompts(found.path / "train.jsonl")[: self.most_prompts or None]

    def choose(
        self, checkpoint: Checkpoint, prompts: Sequence[Prompt], template: TemplateConfig, runtime: Runtime, name: str
    ) -> Selection:
        """Sample every prompt and choose; raises RunFailed if too many responses cannot be scored.

        `name` is the file in which the groups are kept.
        """
        sampling = Sampling(self.sampling, self.engine, self.reward, template)
        with SampleFile(runtime.work_dir / f"{name}.jsonl") as kept:
            groups = [group.scored for group in sampling.run(checkpoint.path, prompts, runtime, kept)]
        check_scores(groups, self.reward.max_failed_share)
        return select(groups, self.select)

    def written(
        self,
        chat: ChatModel | None,
        checkpoint: Checkpoint | None,
        requests: Sequence[Prompt],
        template: TemplateConfig,
        runtime: Runtime,
        name: str,
    ) -> Selection:
        """Have a chat model answer in R1's form and choose: an endpoint, if `chat` is one, else the checkpoint.

        Raises RunFailed if too many requests have no answer, or too many answers cannot be scored.
        """
        if chat is None or not chat.url:
            assert checkpoint is not None
            return self.choose(checkpoint, requests, template, runtime, name)
        replies = ask_endpoint(chat, requests, self.sampling, runtime, lambda text: split_reasoning(text) is not None)
        with IsolatedScorer(self.reward, runtime.work_dir / "reward.log") as scorer:
            groups = [ScoredGroup(group, scorer.score(group)) for group in replies.groups]
        check_scores(groups, self.reward.max_failed_share)
        chosen = select(groups, self.select)
        return Selection(chosen.kept, [*replies.dropped, *chosen.dropped])

    def estimate(self, cluster: ClusterConfig, model: ModelConfig | None) -> StageEstimate:
        """What `model` is to sample; how many prompts there are, only the run knows."""
        prompts, sampling = self.most_prompts or self.expected_prompts, self.sampling
        batch: dict[str, str | int | float] = {
            "prompts": self.most_prompts or f"all, {prompts:,} expected",
            "responses per prompt": sampling.n,
            "tokens a response at most": sampling.max_tokens,
        }
        return sampling_estimate(cluster, self.engine, batch, model, prompts * sampling.n * sampling.max_tokens)


def chat_of(sample: Sample, found: Reasoned) -> Chat:
    """The question as it was asked, and the answer in R1's form; the id leads back to prompt and response."""
    return Chat(sample.id, (*sample.prompt.conversation, found.message()))


def write_chat_set(runtime: Runtime, chats: Sequence[Chat], dropped: Iterable[Drop], told: str) -> ChatSet:
    """Write the artifact `chats`: the conversations and what was dropped.

    `told` says what became of the responses. Raises UserError if there are no conversations.
    """
    if not chats:
        allowed = "must keep a response: sample more of them, or loosen what a response must be (select)"
        raise UserError(f"stage.{runtime.node}", told, allowed)
    directory = runtime.artifact_dir("chats")
    write_rows(directory / "train.jsonl", map(asdict, chats))
    write_dropped(directory, dropped)
    runtime.tracker.progress(len(chats), len(chats), told)
    return ChatSet(directory)


def write_dropped(directory: Path, dropped: Iterable[Drop]) -> None:
    """Write what was dropped and why."""
    rows: Iterable[Mapping[str, Any]] = map(asdict, dropped)
    write_rows(directory / DROPPED, rows)
