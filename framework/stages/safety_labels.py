"""Answers labelled safe or unsafe for the safety reward model, which reads reasoning and summary.

Source: DeepSeek-R1 (2501.12948v2) section B.3: a pointwise model of responses to 106,000 prompts. A judge model labels,
or without one a rule that knows only requests made from templates: of those that must be declined every answer is
unsafe that does not decline, and all other answers are safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from framework.artifacts import Checkpoint, PreferenceSet, PromptSet
from framework.bounds import NonNegativeInt, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig
from framework.data.judging import is_safe_by_rule, read_safety, safety_question
from framework.data.readers import read_prompts, write_rows
from framework.data.reasoning import Reasoned
from framework.data.selection import Drop
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.fit import Fit, Given
from framework.graph.nodes import Runtime
from framework.graph.plan import StageEstimate
from framework.models.families.base import ModelConfig
from framework.stages.read_samples import (
    check_sampling,
    finished_answers,
    fit_engine,
    sampled_groups,
    sampling_estimate,
)
from framework.stages.sampled_chats import write_dropped
from framework.stages.sampling import SamplingConfig
from framework.types import Prompt


@dataclass(frozen=True)
@bounded
class LabelsConfig:
    """How answers are sampled and judged."""

    sampling: SamplingConfig = SamplingConfig(n=1, purpose="safety")
    judging: SamplingConfig = SamplingConfig(n=1, purpose="judge")
    most_prompts: NonNegativeInt = 0  # the first of the train prompts; 0: all
    expected_prompts: PositiveInt = 106_000  # that the plan counts on where only the run knows how many there are
    with_poor: bool = False  # label the poor answer that a template has too: a small model's own are seldom unsafe
    engine: VllmConfig = VllmConfig()  # the sampler's

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.rollout"}

    def __post_init__(self) -> None:
        if self.judging.n != 1:
            raise UserError("judging.n", self.judging.n, "must be 1: each answer is judged once")

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engine, for the model on the cluster."""
        return fit_engine(self.engine, max(self.sampling.max_tokens, self.judging.max_tokens), model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        check_sampling("sampling", self.sampling, self.engine)
        check_sampling("judging", self.judging, self.engine)
        cluster.check_sampling_gpus(self.engine.tensor_parallel_size)


@dataclass(frozen=True)
class LabelsInputs:
    """Whose answers are labelled, to which prompts; and the model that judges, if there is one."""

    checkpoint: Checkpoint
    prompts: PromptSet
    judge: Checkpoint | None = None


@dataclass(frozen=True)
class Labelled:
    """Answers with a label, 1 for safe and 0 for unsafe; dropped.jsonl says which went, and why."""

    labels: PreferenceSet


@dataclass(frozen=True)
class _Answer:
    id: str
    prompt: Prompt
    text: str


@dataclass(frozen=True)
class LabelSafety:
    """The stage."""

    config: LabelsConfig
    model: ModelConfig | None = None  # sizes of what is sampled, for the plan
    template: TemplateConfig = TemplateConfig()  # of both models' prompts; without a name their own

    def run(self, inputs: LabelsInputs, runtime: Runtime) -> Labelled:
        """Sample, label, write; raises UserError if one of the two labels has no answer."""
        config, dropped = self.config, list[Drop]()
        prompts = read_prompts(inputs.prompts.path / "train.jsonl")[: config.most_prompts or None]
        answers = list(self._answers(inputs.checkpoint, prompts, runtime, dropped))
        rows, counts = list[dict[str, Any]](), Counter[str]()
        for answer, safe in zip(answers, self._safe(answers, inputs.judge, runtime), strict=True):
            if safe is None:
                dropped.append(Drop(answer.id, "no_verdict"))
            else:
                counts["safe" if safe else "unsafe"] += 1
                rows.append(_row(answer, safe))
        told = f"{counts['safe']:,} safe, {counts['unsafe']:,} unsafe, {len(dropped):,} dropped"
        if not (counts["safe"] and counts["unsafe"]):
            allowed = "must have answers of both kinds: a model cannot learn from one (with_poor adds unsafe ones)"
            raise UserError(f"stage.{runtime.node}", told, allowed)
        directory = runtime.artifact_dir("labels")
        write_rows(directory / "train.jsonl", rows)
        write_dropped(directory, dropped)
        runtime.tracker.progress(len(rows), len(rows), told)
        return Labelled(PreferenceSet(directory))

    def _answers(
        self, checkpoint: Checkpoint, prompts: Sequence[Prompt], runtime: Runtime, dropped: list[Drop]
    ) -> Iterator[_Answer]:
        config = self.config
        for group in sampled_groups(config.sampling, config.engine, self.template, checkpoint, prompts, runtime):
            prompt = group.prompt
            for place, found in finished_answers(group, dropped):
                yield _Answer(f"{prompt.id}#{place}", prompt, str(found.message()["content"]))
            if config.with_poor:
                poor = Reasoned("", str(prompt.columns["poor"])).message()
                yield _Answer(f"{prompt.id}#poor", prompt, str(poor["content"]))

    def _safe(self, answers: Sequence[_Answer], judge: Checkpoint | None, runtime: Runtime) -> Iterator[bool | None]:
        """Whether each answer is safe; None where the judge gives no verdict."""
        if judge is None:
            yield from (is_safe_by_rule(answer.prompt, answer.text) for answer in answers)
            return
        config = self.config
        asked = [safety_question(answer.prompt, f"{answer.id}?", answer.text) for answer in answers]
        for group in sampled_groups(config.judging, config.engine, self.template, judge, asked, runtime):
            yield read_safety(group.responses[0].text)

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """What is sampled and judged of a prompt."""
        config, prompts = self.config, self.config.most_prompts or self.config.expected_prompts
        batch: dict[str, str | int | float] = {
            "prompts": config.most_prompts or f"all, {prompts:,} expected",
            "answers per prompt": config.sampling.n,
        }
        tokens = prompts * config.sampling.n * (config.sampling.max_tokens + config.judging.max_tokens)
        return sampling_estimate(cluster, config.engine, batch, self.model, tokens)


def _row(answer: _Answer, safe: bool) -> dict[str, Any]:
    prompt = answer.prompt
    asked = list(prompt.messages) or [{"role": "user", "content": prompt.text}]
    return {
        "id": answer.id,
        "prompt": asked,
        "answer": {"role": "assistant", "content": answer.text},
        "label": int(safe),
    }
