"""Best-of-n: of a checkpoint's answers to each prompt the one that a reward model likes best, to be fine-tuned on.

Source: WebGPT (2112.09332) for best-of-n; RAFT (2304.06767) for learning from it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from framework.artifacts import ChatSet, Checkpoint, PromptSet, RewardCheckpoint
from framework.data.chat_shards import Chat
from framework.data.chat_template import TemplateConfig
from framework.data.readers import write_rows
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.rewards.connected import with_checkpoints
from framework.roles.reward import check_scores
from framework.stages.sample_file import SampleFile
from framework.stages.sampled_chats import SampledConfig
from framework.stages.sampling import Sampling
from framework.types import ScoredGroup


@dataclass(frozen=True)
class BestOfNInputs:
    """Who answers, the prompts, and what scores the answers as reward component `helpful`."""

    checkpoint: Checkpoint
    prompts: PromptSet
    helpful: RewardCheckpoint


@dataclass(frozen=True)
class Best:
    """Conversations, one a prompt."""

    chats: ChatSet


@dataclass(frozen=True)
class BestOfN:
    """The stage; KL to the checkpoint of what it keeps is log n - (n - 1) / n at most (2112.09332)."""

    config: SampledConfig
    model: ModelConfig | None = None  # sizes of what is sampled, for the plan
    template: TemplateConfig = TemplateConfig()  # without a name the checkpoint's own

    def run(self, inputs: BestOfNInputs, runtime: Runtime) -> Best:
        """Sample and choose; raises UserError if nothing is left."""
        config = self.config
        rewards = with_checkpoints(config.reward, {"helpful": inputs.helpful.path})
        sampling = Sampling(config.sampling, config.engine, rewards, self.template)
        prompts = config.prompts(inputs.prompts)
        with SampleFile(runtime.work_dir / "samples.jsonl") as kept:
            groups = [group.scored for group in sampling.run(inputs.checkpoint.path, prompts, runtime, kept)]
        check_scores(groups, rewards.max_failed_share)
        chats = [chat for group in sorted(groups, key=lambda one: one.group.prompt.id) if (chat := _best(group))]
        if not chats:
            raise UserError(f"stage.{runtime.node}", "no finished answer", "must keep one: raise sampling.max_tokens")
        directory, n = runtime.artifact_dir("chats"), config.sampling.n
        write_rows(directory / "train.jsonl", map(asdict, chats))
        told = f"the best of {n} for {len(chats)} of {len(prompts)} prompts"
        runtime.tracker.log(1, {"kl/sequence": math.log(n) - (n - 1) / n})
        runtime.tracker.progress(1, 1, told)
        return Best(ChatSet(directory))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Sampling alone."""
        return self.config.estimate(cluster, self.model)


def _best(scored: ScoredGroup) -> Chat | None:
    """The finished answer of the highest reward; the first of several."""
    prompt = scored.group.prompt
    able = [
        (score.total, -place)
        for place, (response, score) in enumerate(zip(scored.group.responses, scored.scores, strict=True))
        if response.finish_reason == "stop" and response.text.strip() and not score.error
    ]
    if not able:
        return None
    place = -max(able)[1]
    answer = {"role": "assistant", "content": scored.group.responses[place].text.strip()}
    return Chat(f"{prompt.id}#{place}", (*prompt.conversation, answer))
