"""Evaluate a checkpoint on held-out prompts: pass@1, cons@k and pass@k from k sampled responses (R1 v2, D.1)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

from framework.artifacts import Checkpoint, EvalReport, PromptSet, RewardCheckpoint
from framework.bounds import Bound, FilledStr, NonNegativeInt, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig
from framework.data.readers import read_prompts, write_rows
from framework.data.selection import RIGHT_BY, check_right_by
from framework.data.sources import find_source
from framework.data.standings import KEY as STANDINGS
from framework.data.standings import read_standings
from framework.engines.cpu.heads import check_cpu_heads
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import RoleEstimate, StageEstimate
from framework.models.families.base import ModelConfig
from framework.rewards.base import RewardConfig
from framework.rewards.connected import with_checkpoints
from framework.rewards.right import DOMAINS, domain_of
from framework.roles.reward import check_scores
from framework.stages.eval_numbers import JudgedGroup, best_of, by_columns, right_shares, task_numbers
from framework.stages.rating import Standings, contest_rating
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import Sampling, SamplingConfig
from framework.types import EvalResult, EvalTask, Prompt, ScoredGroup

logger = logging.getLogger("framework")


@dataclass(frozen=True)
@bounded
class EvaluateConfig:
    """How held-out prompts are sampled. Defaults: the R1 paper's (temperature 0.6, top-p 0.95, 64 samples for AIME)."""

    k: PositiveInt = 64  # responses per prompt
    temperature: Annotated[float, Bound(least=0, most=2, note="0: greedy")] = 0.6
    top_p: Annotated[float, Bound(above=0, most=1)] = 0.95
    max_tokens: PositiveInt = 32_768
    max_prompts: NonNegativeInt = 0  # 0: all
    # reward components that say whether a response is right: the first of them that scores a prompt
    right_by: tuple[str, ...] = RIGHT_BY
    format: FilledStr = "format"
    general_by: tuple[str, ...] = ("helpful", "safety")  # components that score no prompt but those that name them
    best_by: str = ""  # a component by which the best of n responses is told, for n = 1, 2, 4, … k; "": not told
    standings: str = ""  # a folder or glob: who took part in the problems' Codeforces contests (`data.standings`)
    groups_in_flight: PositiveInt = 64  # per rollout worker
    reward: RewardConfig = field(kw_only=True)  # what scores a response
    engine: VllmConfig = VllmConfig()  # the sampler's

    inherits: ClassVar[Mapping[str, str]] = {"reward": "reward", "engine": "engine.rollout"}

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.k > 1:
            raise UserError("k", self.k, "must be 1 at temperature 0: all responses would be alike")
        check_right_by(self.right_by, self.reward.components, "right_by")
        if self.best_by and self.best_by not in self.reward.components:
            names = ", ".join(self.reward.components)
            raise UserError("best_by", self.best_by, f"must be a component of the rewards: {names}")

    def contests(self) -> dict[str, Standings]:
        """Return contest id -> who took part; empty if nothing is named. Raises UserError for a file that is wrong."""
        found = read_standings(self.standings) if self.standings else {}
        return {name: Standings(*each) for name, each in found.items()}

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        return find_source(self.standings, STANDINGS).local if self.standings else ()

    def sampling(self) -> SamplingConfig:
        """The same, for `Sampling`."""
        return SamplingConfig(
            n=self.k,
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            groups_in_flight=self.groups_in_flight,
            purpose="evaluate",
            votes_by=self.right_by,
        )

    def check_lengths(self) -> None:
        """Raise UserError unless the longest response leaves room for its prompt."""
        if self.max_tokens >= self.engine.max_model_len:
            allowed = f"must leave room for the prompt in engine.rollout.max_model_len={self.engine.max_model_len}"
            raise UserError("max_tokens", self.max_tokens, allowed)

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engines, for the model on the cluster."""
        from framework.stages.fit import fit_sampling

        return fit_sampling(self, model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        self.check_lengths()
        cluster.check_sampling_gpus(self.engine.tensor_parallel_size)
        if not cluster.gpus:
            check_cpu_heads(model)


@dataclass(frozen=True)
class EvaluateInputs:
    """A checkpoint and the prompts whose held-out part it is tried on."""

    checkpoint: Checkpoint
    prompts: PromptSet
    general: PromptSet | None = None  # requests that no rule of reasoning judges; their held-out part too
    helpful: RewardCheckpoint | None = None  # what the reward component of this name asks
    safety: RewardCheckpoint | None = None
    reference: Checkpoint | None = None  # whose KL divergence is told, by responses


class Compared(Protocol):
    """What tells of each response how a policy and its reference differ; a part, so that others do without its code."""

    def __call__(
        self, groups: Sequence[JudgedGroup], policy: Path, reference: Path, temperature: float, runtime: Runtime
    ) -> list[JudgedGroup]:
        """Return the groups with one more component of each score."""


@dataclass(frozen=True)
class Evaluated:
    """The result."""

    report: EvalReport


@dataclass(frozen=True)
class Evaluate:
    """The stage; `label` names the checkpoint in reports."""

    config: EvaluateConfig
    label: str
    template: TemplateConfig = TemplateConfig()
    note: str = ""  # what was made to fit, and why; said at plan and when it runs
    divergence: Compared | None = None  # from the reference; none: that is not asked

    def __post_init__(self) -> None:
        self.config.check_lengths()

    @property
    def engine(self) -> VllmConfig:
        """The sampler's engine."""
        return self.config.engine

    @property
    def rewards(self) -> RewardConfig:
        """What scores a response."""
        return self.config.reward

    def look_ahead(self) -> str:
        """Read the standings, if some are named."""
        found = self.config.contests()
        return (
            f"{STANDINGS}: {len(found)} contests, {sum(len(c.ratings) for c in found.values()):,} ranks"
            if found
            else ""
        )

    def run(self, inputs: EvaluateInputs, runtime: Runtime) -> Evaluated:
        """Sample, score, write report.json and samples.jsonl; raises RunFailed if too many can't be scored.

        Prompts whose responses a killed run had scored are not sampled again.
        """
        config = self.config
        if self.note:
            logger.info("%s: %s", runtime.node, self.note)
        models = {"helpful": inputs.helpful, "safety": inputs.safety}
        connected = {name: model.path for name, model in models.items() if model is not None}
        rewards = with_checkpoints(self.rewards, connected)
        prompts = self._prompts(inputs)
        sampling = Sampling(config.sampling(), self.engine, rewards, self.template)
        with SampleFile(runtime.work_dir / "samples.jsonl") as kept:
            groups = {
                group.scored.group.prompt.id: group
                for group in sampling.run(inputs.checkpoint.path, prompts, runtime, kept)
            }
        judged = [groups[prompt.id] for prompt in prompts]
        if self.divergence is not None and inputs.reference is not None:
            both = inputs.checkpoint.path, inputs.reference.path
            judged = self.divergence(judged, *both, config.temperature, runtime)
        scored = [group.scored for group in judged]
        check_scores(scored, self.rewards.max_failed_share)  # a broken verifier is no wrong answer
        result = summarise(self.label, judged, config)
        directory = runtime.artifact_dir("report")
        (directory / "report.json").write_text(json.dumps(asdict(result), indent=1))
        write_rows(directory / "samples.jsonl", (_row(group) for group in scored))
        return Evaluated(EvalReport(directory))

    def _prompts(self, inputs: EvaluateInputs) -> list[Prompt]:
        """The held-out prompts of both sets; one that names no rewards is scored by all but those of general ones."""
        sets = [found for found in (inputs.prompts, inputs.general) if found is not None]
        read = chain.from_iterable(
            read_prompts(found.path / "heldout.jsonl")[: self.config.max_prompts or None] for found in sets
        )
        others = tuple(name for name in self.rewards.components if name not in self.config.general_by)
        prompts = [prompt if prompt.rewards else replace(prompt, rewards=others) for prompt in read]
        self.rewards.check_prompts(prompts)
        return prompts

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """Sampling only."""
        workers = cluster.rollout_workers
        gpus = workers * self.engine.tensor_parallel_size if cluster.gpus else 0
        batch = {"responses per prompt": self.config.k, "tokens a response at most": self.config.max_tokens}
        roles = (RoleEstimate("rollout", workers, gpus),)
        return StageEstimate(batch=batch, roles=roles, assumptions=(self.note,) if self.note else ())


def summarise(label: str, judged: Sequence[JudgedGroup], config: EvaluateConfig) -> EvalResult:
    """Overall numbers, and those of each task, domain, level and the like."""

    def numbers(found: Mapping[str, Sequence[JudgedGroup]]) -> tuple[EvalTask, ...]:
        return tuple(task_numbers(name, groups, config.right_by, config.format) for name, groups in found.items())

    by_task = dict(sorted(_grouped(judged, lambda prompt: prompt.task).items()))
    domains = _grouped(judged, domain_of)
    ordered = {name: domains[name] for name in (*DOMAINS, *sorted(domains)) if name in domains}
    (overall,) = numbers({"all": judged})
    return EvalResult(
        label,
        overall,
        numbers(by_task),
        {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.max_tokens},
        right_shares(judged, config.right_by),
        numbers(by_columns(judged)),
        contest_rating(judged, config.right_by, config.contests()),
        numbers(ordered) if len(ordered) > 1 else (),
        best_of(judged, config.best_by) if config.best_by else {},
    )


def _grouped(judged: Sequence[JudgedGroup], key: Callable[[Prompt], str]) -> dict[str, list[JudgedGroup]]:
    found: dict[str, list[JudgedGroup]] = {}
    for group in judged:
        found.setdefault(key(group.scored.group.prompt), []).append(group)
    return found


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
