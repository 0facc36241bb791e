"""Answers labelled safe or unsafe for the safety reward model, which reads reasoning and summary.

Source: DeepSeek-R1 (2501.12948v2) section B.3: a pointwise model of responses to 106,000 prompts. A judge model labels,
or without one a rule that knows only requests made from templates: of those that must be declined every answer is
unsafe that does not decline, and all other answers are safe.
"""

from __future__ import annotations

from collections import Counter, defaultdict
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
from framework.stages.chat_model import NO_VERDICTS, ChatModel, judge_replies
from framework.stages.read_samples import (
    check_sampling,
    finished_answers,
    fit_engine,
    sampled_groups,
    sampling_estimate,
)
from framework.stages.sampled_chats import write_dropped
from framework.stages.sampling import SamplingConfig
from framework.types import Prompt, ResponseGroup


@dataclass(frozen=True)
@bounded
class LabelsConfig:
    """How answers are sampled and judged."""

    sampling: SamplingConfig = SamplingConfig(n=1, purpose="safety")
    judging: SamplingConfig = SamplingConfig(n=1, purpose="judge")
    most_prompts: NonNegativeInt = 0  # the first of the train prompts; 0: all
    expected_prompts: PositiveInt = 106_000  # that the plan counts on where only the run knows how many there are
    with_templates: bool = False  # label a template's good and poor answer too: a small model's own are seldom unsafe
    judge: ChatModel | None = None  # who labels; without one a rule does, which knows requests made from templates
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
    """Answers labelled 1 for safe or 0 for unsafe, those to held-out prompts apart; dropped.jsonl says which went."""

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

    def look_ahead(self) -> str:
        """Ask the judge's endpoint, if it is one, for its models."""
        return "" if self.config.judge is None else self.config.judge.look_ahead("stage.safety_labels.judge")

    def run(self, inputs: LabelsInputs, runtime: Runtime) -> Labelled:
        """Sample, label, write; raises UserError if one of the two labels has no answer to train on."""
        most, dropped = self.config.most_prompts or None, list[Drop]()
        train, held_out = (
            read_prompts(inputs.prompts.path / f"{split}.jsonl")[:most] for split in ("train", "heldout")
        )
        answers = list(self._answers(inputs.checkpoint, (*train, *held_out), runtime, dropped))
        apart, counts = {prompt.id for prompt in held_out}, Counter[str]()
        rows = defaultdict[str, list[dict[str, Any]]](list)
        for answer, safe in zip(answers, self._safe(answers, inputs.judge, runtime), strict=True):
            if safe is None:
                dropped.append(Drop(answer.id, "no_verdict"))
                continue
            rows["validation" if answer.prompt.id in apart else "train"].append(_row(answer, safe))
            counts["held out" if answer.prompt.id in apart else "safe" if safe else "unsafe"] += 1
        told = f"{counts['safe']:,} safe, {counts['unsafe']:,} unsafe, {counts['held out']:,} held out, "
        reasons = Counter(drop.reason for drop in dropped).most_common()
        told += f"{len(dropped):,} dropped"
        told += f" ({', '.join(f'{n:,} {reason}' for reason, n in reasons)})" if reasons else ""
        if not (counts["safe"] and counts["unsafe"]):
            allowed = "must have answers of both kinds: a model cannot learn from one (with_templates adds unsafe ones)"
            if not counts.total() and reasons[:1] and reasons[0][0] == "no_verdict":
                allowed = f"must have answers of both kinds: {NO_VERDICTS}"
            raise UserError(f"stage.{runtime.node}", told, allowed)
        directory = runtime.artifact_dir("labels")
        for split, found in rows.items():
            write_rows(directory / f"{split}.jsonl", found)
        write_dropped(directory, dropped)
        runtime.tracker.progress(len(rows["train"]), len(rows["train"]), told)
        return Labelled(PreferenceSet(directory))

    def _answers(
        self, checkpoint: Checkpoint, prompts: Sequence[Prompt], runtime: Runtime, dropped: list[Drop]
    ) -> Iterator[_Answer]:
        config = self.config
        for group in sampled_groups(config.sampling, config.engine, self.template, checkpoint, prompts, runtime):
            prompt = group.prompt
            for place, found in finished_answers(group, dropped):
                yield _Answer(f"{prompt.id}#{place}", prompt, str(found.message()["content"]))
            if config.with_templates:
                for name, text in (("good", prompt.answer), ("poor", str(prompt.columns["poor"]))):
                    yield _Answer(f"{prompt.id}#{name}", prompt, str(Reasoned("", text).message()["content"]))

    def _safe(self, answers: Sequence[_Answer], judge: Checkpoint | None, runtime: Runtime) -> Iterator[bool | None]:
        """Whether each answer is safe; None where the judge gives no verdict."""
        if judge is None and self.config.judge is None:
            yield from (is_safe_by_rule(answer.prompt, answer.text) for answer in answers)
            return
        config = self.config
        asked = [safety_question(answer.prompt, f"{answer.id}?", answer.text) for answer in answers]

        def sampled() -> list[ResponseGroup]:
            assert judge is not None
            return sampled_groups(config.judging, config.engine, self.template, judge, asked, runtime)

        def readable(reply: str) -> bool:
            return read_safety(reply) is not None

        replies = judge_replies(config.judge, sampled, asked, config.judging, runtime, readable)
        yield from (read_safety(replies.get(question.id, "")) for question in asked)

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
    return {
        "id": answer.id,
        "prompt": list(prompt.conversation),
        "answer": {"role": "assistant", "content": answer.text},
        "label": int(safe),
    }
