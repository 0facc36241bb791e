"""Preference pairs for the helpful reward model: a checkpoint's answers, compared by a judge.

Source: DeepSeek-R1 (2501.12948v2) section B.3: V3 compares two answers four times in random order, the mean decides,
and pairs with a clear margin are kept, of comparable length. The helpful model reads summaries alone, so they alone are
judged. Without a judge model a rule judges (`data.judging`), which knows only requests made from templates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from framework.artifacts import Checkpoint, PreferenceSet, PromptSet
from framework.bounds import NonNegativeInt, PositiveInt, bounded
from framework.data.chat_template import TemplateConfig
from framework.data.judging import margin_by_rule, question_for, read_verdict
from framework.data.pairs import Candidate, Pair, PairConfig, choose_pairs, first_is_shown_first
from framework.data.readers import read_prompts, write_rows
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
class PairsConfig:
    """How answers are sampled and judged, and which pairs stay."""

    sampling: SamplingConfig = SamplingConfig(n=2, purpose="preferences")
    judging: SamplingConfig = SamplingConfig(n=1, purpose="judge")
    pairs: PairConfig = PairConfig()
    most_prompts: NonNegativeInt = 0  # the first of the train prompts; 0: all
    expected_prompts: PositiveInt = 66_000  # that the plan counts on where only the run knows how many there are
    scored_by: str = "helpful"  # of the prompts those that this reward scores; "": all
    # Compare a template's good and poor answer with every answer too: a small model's own hardly differ.
    with_templates: bool = False
    judge: ChatModel | None = None  # who compares; without one a rule does, which knows requests made from templates
    engine: VllmConfig = VllmConfig()  # the sampler's

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.rollout"}

    def __post_init__(self) -> None:
        if self.sampling.n < 2 and not self.with_templates:
            raise UserError("sampling.n", self.sampling.n, "must be at least 2: a pair is two answers to one prompt")
        if self.judging.n != 1:
            raise UserError("judging.n", self.judging.n, "must be 1: pairs.judgements says how often a judge is asked")

    def fit(self, model: ModelConfig, cluster: ClusterConfig, given: Given) -> Fit:
        """Compute what is not given of the engine, for the model on the cluster."""
        return fit_engine(self.engine, max(self.sampling.max_tokens, self.judging.max_tokens), model, cluster, given)

    def check_place(self, model: ModelConfig, cluster: ClusterConfig) -> None:
        """Raise UserError, with keys as they stand in this node, for what the model or the cluster can't do."""
        check_sampling("sampling", self.sampling, self.engine)
        check_sampling("judging", self.judging, self.engine)
        cluster.check_sampling_gpus(self.engine.tensor_parallel_size)


@dataclass(frozen=True)
class PairsInputs:
    """Whose answers are compared, to which prompts; and the model that judges, if there is one."""

    checkpoint: Checkpoint
    prompts: PromptSet
    judge: Checkpoint | None = None


@dataclass(frozen=True)
class JudgedPairs:
    """Pairs, those of held-out prompts apart; dropped.jsonl beside them says which candidate went, and why."""

    pairs: PreferenceSet


@dataclass(frozen=True)
class MakePairs:
    """The stage."""

    config: PairsConfig
    model: ModelConfig | None = None  # sizes of what is sampled, for the plan
    template: TemplateConfig = TemplateConfig()  # of both models' prompts; without a name their own

    def look_ahead(self) -> str:
        """Ask the judge's endpoint, if it is one, for its models."""
        return "" if self.config.judge is None else self.config.judge.look_ahead("stage.helpful_pairs.judge")

    def run(self, inputs: PairsInputs, runtime: Runtime) -> JudgedPairs:
        """Sample, pair, judge, choose; raises UserError if no pair is left to train on."""
        config = self.config
        asked, held_out = (self._asked(inputs.prompts.path / f"{split}.jsonl") for split in ("train", "heldout"))
        if not asked:
            allowed = f"{inputs.prompts.path} has no prompt that names this reward"
            raise UserError(f"stage.{runtime.node}.scored_by", config.scored_by, allowed)
        groups = self._sampled(config.sampling, inputs.checkpoint, [*asked, *held_out], runtime)
        candidates, dropped = list[tuple[Prompt, Candidate]](), list[Drop]()
        for group in groups:
            _pair(group, config.with_templates, candidates, dropped)
        judged = self._judged(candidates, inputs.judge, runtime)
        pairs, more = choose_pairs(judged, config.pairs)
        return JudgedPairs(_write(runtime, pairs, [*dropped, *more], {prompt.id for prompt in held_out}))

    def _asked(self, file: Path) -> list[Prompt]:
        found, wanted = read_prompts(file), self.config.scored_by
        return [p for p in found if not wanted or wanted in p.rewards][: self.config.most_prompts or None]

    def _sampled(
        self, config: SamplingConfig, checkpoint: Checkpoint, prompts: Sequence[Prompt], runtime: Runtime
    ) -> list[ResponseGroup]:
        return sampled_groups(config, self.config.engine, self.template, checkpoint, prompts, runtime)

    def _judged(
        self, candidates: Sequence[tuple[Prompt, Candidate]], judge: Checkpoint | None, runtime: Runtime
    ) -> Iterator[Candidate]:
        """Every candidate with its margins."""
        times = self.config.pairs.judgements
        if judge is None and self.config.judge is None:
            for prompt, candidate in candidates:
                yield replace(candidate, margins=(margin_by_rule(prompt, candidate.first, candidate.second),) * times)
            return
        questions = [
            question_for(prompt, f"{one.id}?{time}", one.first, one.second, _is_a(one, time, runtime))
            for prompt, one in candidates
            for time in range(times)
        ]

        def sampled() -> list[ResponseGroup]:
            assert judge is not None
            return self._sampled(self.config.judging, judge, questions, runtime)

        def readable(reply: str) -> bool:
            return read_verdict(reply, True) is not None

        replies = judge_replies(self.config.judge, sampled, questions, self.config.judging, runtime, readable)
        for _, one in candidates:
            said = (replies.get(f"{one.id}?{time}", "") for time in range(times))
            verdicts = (read_verdict(reply, _is_a(one, time, runtime)) for time, reply in enumerate(said))
            yield replace(one, margins=tuple(verdicts))

    def estimate(self, cluster: ClusterConfig) -> StageEstimate:
        """What is sampled and judged of a prompt."""
        config = self.config
        prompts = config.most_prompts or config.expected_prompts
        batch: dict[str, str | int | float] = {
            "prompts": config.most_prompts or f"all, {prompts:,} expected",
            "answers per prompt": config.sampling.n,
            "judgements per pair": config.pairs.judgements,
            "margin above": config.pairs.least_margin,
        }
        judged = config.sampling.n // 2 * config.pairs.judgements * config.judging.max_tokens
        tokens = prompts * (config.sampling.n * config.sampling.max_tokens + judged)
        return sampling_estimate(cluster, config.engine, batch, self.model, tokens)


def _is_a(candidate: Candidate, time: int, runtime: Runtime) -> bool:
    return first_is_shown_first(candidate.id, time, runtime.seed)


def _pair(
    group: ResponseGroup, with_templates: bool, candidates: list[tuple[Prompt, Candidate]], dropped: list[Drop]
) -> None:
    """Pair the first answer with the second, the third with the fourth; then, if asked, with the template's two."""
    prompt = group.prompt
    said = [(str(place), found.summary) for place, found in finished_answers(group, dropped)]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    if with_templates:
        good, poor = ("good", prompt.answer), ("poor", str(prompt.columns["poor"]))
        pairs += [(good, poor), *((one, other) for one in said for other in (good, poor))]
    for (first_name, first), (second_name, second) in pairs:
        name = f"{prompt.id}#{first_name}-{second_name}"
        candidates.append((prompt, Candidate(name, prompt.conversation, first, second, ())))


def _write(runtime: Runtime, pairs: Sequence[Pair], dropped: Sequence[Drop], held_out: Set[str]) -> PreferenceSet:
    """Write the pairs, and those of the prompts `held_out` as validation.jsonl, if there are any."""
    counts = Counter(drop.reason for drop in dropped).most_common()
    apart = [pair for pair in pairs if pair.id.rpartition("#")[0] in held_out]
    train = [pair for pair in pairs if pair not in apart]
    told = f"{len(train):,} pairs, {len(apart):,} held out; "
    told += f"dropped: {', '.join(f'{n:,} {reason}' for reason, n in counts) or 'none'}"
    if not train:
        allowed = "must keep a pair: sample more prompts, or ask for a smaller margin (pairs.least_margin)"
        if counts and counts[0][0] == "no_verdict":
            allowed = f"must keep a pair: {NO_VERDICTS}"
        raise UserError(f"stage.{runtime.node}", told, allowed)
    directory = runtime.artifact_dir("pairs")
    for split, found in (("train", train), ("validation", apart)):
        if found:
            write_rows(directory / f"{split}.jsonl", map(_row, found))
    write_dropped(directory, dropped)
    runtime.tracker.progress(len(train), len(train), told)
    return PreferenceSet(directory)


def _row(pair: Pair) -> dict[str, Any]:
    chosen, rejected = ({"role": "assistant", "content": text} for text in (pair.chosen, pair.rejected))
    row = {"id": pair.id, "prompt": list(pair.messages), "chosen": chosen, "rejected": rejected}
    return {**row, "margin": pair.margin}
