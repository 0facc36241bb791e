"""Many responses a prompt from one checkpoint, scored and kept: what evaluation and every sampling stage are built on.

    for group in Sampling(config, engine, rewards).run(checkpoint, prompts, runtime, kept=file): ...

A prompt's responses depend on the seed and on its id, whatever worker serves it. What a dead worker had is done again;
groups that `kept` holds already are not: after a kill the same call goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from framework.actors.pool import Done
from framework.bounds import Bound, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.shuffle import seed_of
from framework.data.tokenizer_files import load_tokenizer
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.rewards.base import RewardConfig
from framework.roles.ray_clients import free_workers
from framework.roles.reward import failures
from framework.roles.reward_watch import RewardWatch
from framework.stages.eval_numbers import JudgedGroup, judged
from framework.stages.sample_file import SampleFile
from framework.stages.workers import SamplingPools, sampling_pools
from framework.types import Prompt, ResponseGroup, SamplingParams, ScoredGroup


@dataclass(frozen=True)
@bounded
class SamplingConfig:
    """How many responses a prompt, and how they are sampled."""

    n: PositiveInt = 4
    temperature: Annotated[float, Bound(least=0, most=2, note="0: greedy")] = 1.0
    top_p: Annotated[float, Bound(above=0, most=1)] = 1.0
    max_tokens: PositiveInt = 256
    groups_in_flight: PositiveInt = 64  # per rollout worker
    purpose: str = "sample"  # part of every seed: two stages of a run do not draw alike
    # rewards whose answers are compared for a majority vote: of several the first that scores a prompt; none: no votes
    votes_by: tuple[str, ...] = ()

    def params(self, run_seed: int, prompt: Prompt) -> SamplingParams:
        """Of one prompt; its n responses count on from the seed."""
        seed = seed_of(run_seed, self.purpose, prompt.id)
        return SamplingParams(self.temperature, self.top_p, self.max_tokens, self.n, seed)


@dataclass(frozen=True)
class Sampling:
    """A checkpoint's responses to prompts."""

    config: SamplingConfig
    engine: VllmConfig
    rewards: RewardConfig
    template: TemplateConfig = TemplateConfig()

    def run(
        self, checkpoint: Path, prompts: Sequence[Prompt], runtime: Runtime, kept: SampleFile | None = None
    ) -> Iterator[JudgedGroup]:
        """Yield every prompt's group once: those that `kept` has first, then others as they finish, kept from then on.

        A group with a response that could not be scored is not kept: the next attempt tries it again. Workers start if
        a prompt is left, and end after the last. Raises UserError for a prompt that does not fit the context or an id
        that occurs twice, Stopped when the run is asked to stop.
        """
        from framework.models.public_layout import without_stale_copies

        config = self.config
        tokenizer = load_tokenizer(checkpoint)
        tokenized = tokenize_prompts(tokenizer, prompts, self.engine.max_model_len, config.max_tokens, self.template)
        left = {prompt.id: prompt for prompt in tokenized}
        if len(left) < len(tokenized):
            twice = next(p.id for place, p in enumerate(tokenized) if p.id in {q.id for q in tokenized[:place]})
            raise UserError(f"prompt {twice}", twice, "its id occurs twice: seeds and kept responses go by it")
        for group in kept.groups(tokenized) if kept is not None else ():
            del left[group.scored.group.prompt.id]
            yield group
        runtime.tracker.progress(len(tokenized) - len(left), len(tokenized), "prompts")
        if not left:
            return
        model, logs = without_stale_copies(checkpoint, runtime.work_dir / "base"), runtime.work_dir
        rewards = self.rewards.at_limit(config.max_tokens)
        spent = 0  # tokens of judges
        with sampling_pools(runtime.cluster, self.engine, rewards, model, logs) as pools:
            done = len(tokenized) - len(left)
            for group in sample_groups(pools, tuple(left.values()), config, runtime, done, len(tokenized)):
                if kept is not None and not failures([group.scored]):
                    kept.append(group)
                spent += sum(score.tokens for score in group.scored.scores)
                yield group
        if spent:
            runtime.tracker.log(0, {f"{config.purpose}/reward_tokens": float(spent)})
            runtime.tracker.progress(len(tokenized), len(tokenized), f"prompts; judges read and wrote {spent:,} tokens")


def sample_groups(
    pools: SamplingPools,
    prompts: Sequence[Prompt],
    config: SamplingConfig,
    runtime: Runtime,
    done: int = 0,
    total: int | None = None,
) -> Iterator[JudgedGroup]:
    """Yield the scored group of each prompt as it finishes; work of dead actors is done again.

    `done` of `total` prompts were finished before, for the progress that is shown.
    """
    rollout, reward = pools.rollout, pools.reward
    total = len(prompts) if total is None else total
    to_sample, to_score = list(range(len(prompts)))[::-1], deque[int]()
    groups: dict[int, ResponseGroup] = {}
    watch, finished = RewardWatch(), 0
    verb = ("judge", config.votes_by) if config.votes_by else ("score",)
    while finished < len(prompts):
        for worker in rollout.ready():
            while to_sample and rollout.load(worker) < config.groups_in_flight:
                index = to_sample.pop()
                params = config.params(runtime.seed, prompts[index])
                rollout.call(worker, "generate", prompts[index], params, tag=index)
        for worker in free_workers(reward) if to_score else ():
            if to_score:
                index = to_score.popleft()
                reward.call(worker, verb[0], groups[index], *verb[1:], tag=index)
        for outcome in rollout.poll(0.05):
            index = int(outcome.tag)  # type: ignore[call-overload]
            if isinstance(outcome, Done):
                groups[index] = outcome.result
                to_score.append(index)
            else:
                to_sample.append(index)
        for outcome in reward.poll(0):
            index = int(outcome.tag)  # type: ignore[call-overload]
            if isinstance(outcome, Done):
                group = judged(ScoredGroup(groups.pop(index), outcome.result))
                watch.arrived(group.scored)
                finished += 1
                yield group
            else:
                to_score.append(index)
        waits = "waiting for vLLM to start" if not finished and not rollout.ready() else "prompts"
        runtime.tracker.progress(done + finished, total, waits)
        runtime.stop_if_asked()
