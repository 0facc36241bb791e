"""Rankings for a reward model: several answers of a checkpoint to each request, ordered by a judge.

Source: InstructGPT (2203.02155 section 3.4): people rank K = 4 to 9 answers to a prompt. Here a rule judges, which
knows only requests made from templates (`data.judging`); `noise` lets it err as people do.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from framework.artifacts import Checkpoint, PreferenceSet, PromptSet
from framework.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig
from framework.data.judging import grade_by_rule
from framework.data.readers import read_prompts, write_rows
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.read_samples import check_sampling, fit_engine, sampled_groups, sampling_estimate
from framework.stages.sampling import SamplingConfig
from framework.types import ResponseGroup


@dataclass(frozen=True)
@bounded
class RankingsConfig:
    """How answers are sampled and judged."""

    sampling: SamplingConfig = SamplingConfig(n=4, purpose="rankings")
    most_prompts: NonNegativeInt = 0  # the first of the train prompts; 0: all
    expected_prompts: PositiveInt = 33_000  # that the plan counts on; InstructGPT's, Table 6
    with_given: bool = False  # rank the templates' good and poor answers too
    noise: NonNegativeFloat = 0.0  # standard deviation of the judge's error, in grades: 2 for what is needed
    engine: VllmConfig = VllmConfig()  # the sampler's

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.rollout"}

    def __post_init__(self) -> None:
        if self.sampling.n < 2 and not self.with_given:
            raise UserError("sampling.n", self.sampling.n, "must be at least 2: one answer has no rank")

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engine, for the model on the cluster."""
        return fit_engine(self.engine, self.sampling.max_tokens, model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        check_sampling("sampling", self.sampling, self.engine)
        cluster.check_sampling_gpus(self.engine.tensor_parallel_size)


@dataclass(frozen=True)
class RankingsInputs:
    """Whose answers are ranked, to which prompts."""

    checkpoint: Checkpoint
    prompts: PromptSet


@dataclass(frozen=True)
class MadeRankings:
    """A ranking a prompt: train.jsonl, and validation.jsonl of the held-out prompts."""

    rankings: PreferenceSet


@dataclass(frozen=True)
class MakeRankings:
    """The stage."""

    config: RankingsConfig
    model: ModelConfig | None = None  # sizes of what is sampled, for the plan
    template: TemplateConfig = TemplateConfig()  # without a name the checkpoint's own

    def run(self, inputs: RankingsInputs, runtime: Runtime) -> MadeRankings:
        """Sample, grade, write; raises UserError if a side has no ranking left."""
        config, directory = self.config, runtime.artifact_dir("rankings")
        sides = {
            name: read_prompts(inputs.prompts.path / f"{split}.jsonl")
            for name, split in (("train", "train"), ("validation", "heldout"))
        }
        sides["train"] = sides["train"][: config.most_prompts or None]
        asked = [prompt for prompts in sides.values() for prompt in prompts]
        groups = sampled_groups(config.sampling, config.engine, self.template, inputs.checkpoint, asked, runtime)
        found = {group.prompt.id: group for group in groups}
        counts = Counter[str]()
        for name, prompts in sides.items():
            rows = [row for prompt in prompts if (row := self._ranked(found[prompt.id], runtime.seed, counts))]
            if not rows:
                allowed = "must leave a ranking: sample more answers, or rank the given ones too (with_given)"
                raise UserError(f"stage.{runtime.node}", f"no {name} ranking; {_told(counts)}", allowed)
            write_rows(directory / f"{name}.jsonl", rows)
        runtime.tracker.progress(1, 1, _told(counts))
        return MadeRankings(PreferenceSet(directory))

    def _ranked(self, group: ResponseGroup, seed: int, counts: Counter[str]) -> dict[str, Any] | None:
        """A prompt's different answers with their grades; None where they say nothing of each other."""
        prompt, config = group.prompt, self.config
        answers = list(dict.fromkeys(_answers(group, config.with_given)))
        if len(answers) < 2:
            counts["prompts with one answer"] += 1
            return None
        drawn = random.Random(f"{seed} {prompt.id}")
        scores = [grade_by_rule(prompt, answer) + drawn.gauss(0.0, config.noise) for answer in answers]
        if len(set(scores)) == 1:
            counts["prompts of ties alone"] += 1
            return None
        counts["rankings"] += 1
        counts["answers"] += len(answers)
        return {"id": prompt.id, "prompt": list(prompt.conversation), "answers": answers, "scores": scores}

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """What is sampled."""
        config = self.config
        prompts = config.most_prompts or config.expected_prompts
        batch: dict[str, str | int | float] = {"prompts": prompts, "answers per prompt (K)": config.sampling.n}
        tokens = prompts * config.sampling.n * config.sampling.max_tokens
        return sampling_estimate(cluster, config.engine, batch, self.model, tokens)


def _answers(group: ResponseGroup, with_given: bool) -> Iterator[str]:
    for response in group.responses:
        if response.finish_reason == "stop" and (said := response.text.strip()):
            yield said
    if with_given:
        yield from (group.prompt.answer, str(group.prompt.columns["poor"]))


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "nothing"
