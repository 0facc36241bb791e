"""Evaluate a checkpoint on held-out prompts: pass@1, cons@k and pass@k from k sampled responses (R1 v2, D.1)."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import numpy as np

from framework.artifacts import Checkpoint, EvalReport, PromptSet
from framework.bounds import Bound, FilledStr, NonNegativeInt, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig, tokenize_prompts
from framework.data.readers import read_prompts, write_rows
from framework.data.shuffle import seed_of
from framework.data.tokenizer_files import load_tokenizer
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.plan import RoleEstimate, StageEstimate
from framework.rewards.answers import extract_answer
from framework.rewards.base import RewardConfig
from framework.roles.clients import free_workers
from framework.roles.pool import Done, WorkerPool
from framework.roles.reward import check_scores
from framework.roles.reward_watch import RewardWatch
from framework.types import EvalResult, EvalTask, Prompt, ResponseGroup, SamplingParams, ScoredGroup


@dataclass(frozen=True)
@bounded
class EvaluateConfig:
    """How held-out prompts are sampled. Defaults: the R1 paper's (temperature 0.6, top-p 0.95, 64 samples for AIME)."""

    k: PositiveInt = 64  # responses per prompt
    temperature: Annotated[float, Bound(least=0, most=2, note="0: greedy")] = 0.6
    top_p: Annotated[float, Bound(above=0, most=1)] = 0.95
    max_tokens: PositiveInt = 32_768
    max_prompts: NonNegativeInt = 0  # 0: all
    accuracy: FilledStr = "accuracy"  # reward component that says whether a response is right
    format: FilledStr = "format"
    groups_in_flight: PositiveInt = 64  # per rollout worker

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.k > 1:
            raise UserError("stage.evaluate.k", self.k, "must be 1 at temperature 0: all responses would be alike")


@dataclass(frozen=True)
class EvaluateInputs:
    """A checkpoint and the prompts whose held-out part it is tried on."""

    checkpoint: Checkpoint
    prompts: PromptSet


@dataclass(frozen=True)
class Evaluated:
    """The result."""

    report: EvalReport


@dataclass(frozen=True)
class Evaluate:
    """The stage; `label` names the checkpoint in reports."""

    config: EvaluateConfig
    label: str
    engine: VllmConfig
    rewards: RewardConfig
    template: TemplateConfig = TemplateConfig()

    def __post_init__(self) -> None:
        if self.config.accuracy not in self.rewards.components:
            allowed = f"must be one of the run's rewards: {', '.join(self.rewards.components)}"
            raise UserError("stage.evaluate.accuracy", self.config.accuracy, allowed)
        if self.config.max_tokens >= self.engine.max_model_len:
            allowed = f"must leave room for the prompt in engine.rollout.max_model_len={self.engine.max_model_len}"
            raise UserError("stage.evaluate.max_tokens", self.config.max_tokens, allowed)

    def run(self, inputs: EvaluateInputs, runtime: Runtime) -> Evaluated:
        """Sample, score, write report.json and samples.jsonl; raises RunFailed if too many can't be scored."""
        from framework.models.public_layout import without_stale_copies
        from framework.stages.workers import sampling_pools

        config = self.config
        tokenizer = load_tokenizer(inputs.checkpoint.path)
        found = read_prompts(inputs.prompts.path / "heldout.jsonl")[: config.max_prompts or None]
        prompts = tokenize_prompts(tokenizer, found, self.engine.max_model_len, config.max_tokens, self.template)
        params = SamplingParams(config.temperature, config.top_p, config.max_tokens, config.k)
        checkpoint, logs = without_stale_copies(inputs.checkpoint.path, runtime.work_dir / "base"), runtime.work_dir
        rewards = self.rewards.at_limit(config.max_tokens)
        with sampling_pools(runtime.cluster, self.engine, rewards, checkpoint, logs) as pools:
            scored = sample_and_score(pools.rollout, pools.reward, prompts, params, config.groups_in_flight, runtime)
        check_scores(scored, self.rewards.max_failed_share)  # a broken verifier is no wrong answer
        result = summarise(self.label, scored, config)
        directory = runtime.artifact_dir("report")
        (directory / "report.json").write_text(json.dumps(asdict(result), indent=1))
        write_rows(directory / "samples.jsonl", (_row(group) for group in scored))
        return Evaluated(EvalReport(directory))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Sampling only."""
        workers = cluster.rollout_workers
        gpus = workers * self.engine.tensor_parallel_size if cluster.gpus else 0
        batch = {"responses per prompt": self.config.k, "tokens a response at most": self.config.max_tokens}
        return StageEstimate(batch=batch, roles=(RoleEstimate("rollout", workers, gpus),))


def sample_and_score(
    rollout: WorkerPool,
    reward: WorkerPool,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    in_flight: int,
    runtime: Runtime,
) -> list[ScoredGroup]:
    """Sample a group per prompt and score it; results in the prompts' order. Work of dead actors is done again.

    Seeds come from the run's and the prompt: whatever worker serves it, and again after a resume.
    """
    to_sample, to_score = list(range(len(prompts)))[::-1], deque[int]()
    groups: dict[int, ResponseGroup] = {}
    scored: dict[int, ScoredGroup] = {}
    watch = RewardWatch()
    while len(scored) < len(prompts):
        for worker in rollout.ready():
            while to_sample and rollout.load(worker) < in_flight:
                index = to_sample.pop()
                seeded = replace(params, seed=seed_of(runtime.seed, "evaluate", prompts[index].id))
                rollout.call(worker, "generate", prompts[index], seeded, tag=index)
        for worker in free_workers(reward) if to_score else ():
            if to_score:
                index = to_score.popleft()
                reward.call(worker, "score", groups[index], tag=index)
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
                scored[index] = ScoredGroup(groups[index], outcome.result)
                watch.arrived(scored[index])
                runtime.tracker.progress(len(scored), len(prompts), "prompts")
            else:
                to_score.append(index)
        runtime.stop_if_asked()
    return [scored[index] for index in range(len(prompts))]


def summarise(label: str, scored: Sequence[ScoredGroup], config: EvaluateConfig) -> EvalResult:
    """Overall and per-task numbers."""
    by_task: dict[str, list[ScoredGroup]] = {}
    for group in scored:
        by_task.setdefault(group.group.prompt.task, []).append(group)
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens}
    tasks = tuple(_task(name, groups, config) for name, groups in sorted(by_task.items()))
    return EvalResult(label, _task("all", scored, config), tasks, sampling)


def _task(name: str, groups: Sequence[ScoredGroup], config: EvaluateConfig) -> EvalTask:
    right_NK = np.array([[_component(s.components, config.accuracy) >= 1 for s in g.scores] for g in groups])
    responses = [response for group in groups for response in group.group.responses]
    scores = [score for group in groups for score in group.scores]
    pass_N = right_NK.mean(axis=1)
    return EvalTask(
        task=name,
        n_prompts=len(groups),
        k=right_NK.shape[1],
        pass_at_1=float(pass_N.mean()),
        pass_at_1_se=float(pass_N.std(ddof=1) / np.sqrt(len(groups))) if len(groups) > 1 else 0.0,
        cons_at_k=float(np.mean([majority_is_right(group, config.accuracy) for group in groups])),
        pass_at_k=float(right_NK.any(axis=1).mean()),
        format_rate=float(np.mean([_component(score.components, config.format) for score in scores])),
        mean_response_tokens=float(np.mean([len(response.token_ids) for response in responses])),
        truncated_share=float(np.mean([response.finish_reason == "length" for response in responses])),
    )


def majority_is_right(group: ScoredGroup, accuracy: str) -> bool:
    """Whether the most frequent answer is right; of equally frequent ones, the first given. No answer is no vote."""
    answers = [(extract_answer(response.text) or "").strip() for response in group.group.responses]
    votes = Counter(answer for answer in answers if answer)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]
    return _component(group.scores[answers.index(winner)].components, accuracy) >= 1


def _component(components: object, name: str) -> float:
    value = components.get(name, 0.0) if hasattr(components, "get") else 0.0
    return float(value)


def _row(scored: ScoredGroup) -> dict[str, object]:
    prompt = scored.group.prompt
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "answer": prompt.answer,
        "responses": [response.text for response in scored.group.responses],
        "components": [dict(score.components) for score in scored.scores],
        "errors": [score.error for score in scored.scores],
    }
