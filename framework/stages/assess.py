"""Try a pretrained transformer: held-out text, and a classification task with and without the pretraining."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from framework.artifacts import AssessmentReport, Checkpoint, TextSet, TokenShards
from framework.bounds import PositiveInt, bounded
from framework.data.sentences import Sentences
from framework.data.text_tokenizers import control_code
from framework.data.tokenizer_files import load_tokenizer
from framework.engines.cpu.environment import actor_options
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.graph.nodes import Runtime
from framework.roles.assess_worker import Assessment, FineTuning, Writing
from framework.roles.text_data import Causal, Coded
from framework.stages.transformer import TransformerConfig, source
from framework.types import Assessed


@dataclass(frozen=True)
@bounded
class AssessConfig:
    """The task is `data.word_order`'s; each seed draws what is fresh of both models, and the order of the texts."""

    tuning: FineTuning = FineTuning()
    writing: Writing = Writing()
    seeds: PositiveInt = 3
    engine: DeepSpeedConfig = DeepSpeedConfig()  # its `schedule` is not used

    inherits: ClassVar[Mapping[str, str]] = {"engine": "engine.learner"}


@dataclass(frozen=True)
class AssessInputs:
    """The model, the text, and the text as its tokens."""

    checkpoint: Checkpoint
    text: TextSet
    shards: TokenShards
    teacher: Checkpoint | None = None


@dataclass(frozen=True)
class AssessedTransformer:
    """The result."""

    report: AssessmentReport


@dataclass(frozen=True)
class Assess:
    """The stage; `label` is the row's."""

    config: AssessConfig
    row: TransformerConfig
    label: str

    def run(self, inputs: AssessInputs, runtime: Runtime) -> AssessedTransformer:
        """Write assessment.json; begins again after a stop."""
        config = self.config
        teacher = None if inputs.teacher is None else inputs.teacher.path
        task = Assessment(
            checkpoint=inputs.checkpoint.path,
            text=inputs.text.path,
            data=self.row.learns.data(source(self.row, inputs.shards.path, inputs.checkpoint.path, teacher)),
            engine=replace(config.engine, dtype=self.row.engine.dtype, mtp_coef=0.0),
            tuning=config.tuning,
            longest=self.row.max_tokens,
            writing=config.writing,
            prompts=self._prompts(inputs),
        )
        held_out, written, tuned, fresh = assessed(task, config.seeds, runtime)
        result = Assessed(
            label=self.label,
            model=self.row.model.name,
            learns=type(self.row.learns).__name__.lower(),
            parameters=int(held_out.pop("parameters")),
            held_out=held_out,
            tuned=tuned,
            fresh=fresh,
            written=written,
        )
        return written_assessment(result, runtime)

    def _prompts(self, inputs: AssessInputs) -> tuple[str, ...]:
        """Control codes of a model that has learned some, the begin of a text for another that predicts next tokens."""
        if isinstance(self.row.learns, Coded):
            learned = self.row.learns.codes or tuple(Sentences(inputs.shards.path, "train").sources)
            return tuple(control_code(name) for name in self.config.writing.codes or learned)
        tokenizer = load_tokenizer(inputs.checkpoint.path)
        return (tokenizer.bos_token,) if isinstance(self.row.learns, Causal) else ()


def assessed(
    task: Assessment, seeds: int, runtime: Runtime
) -> tuple[dict[str, float], dict[str, str], tuple[float, ...], tuple[float, ...]]:
    """Try a model in a process of its own: held-out metrics, what it writes, accuracies of classifiers, a seed each.

    The metrics have `parameters` and `perplexity` among them. The last two: of the model, and of a fresh one.
    """
    from framework.actors.rank_group import RankGroup
    from framework.roles.assess_worker import AssessWorker

    cluster = runtime.cluster
    options = actor_options(cluster.learner_cpus, 1.0 if cluster.gpus else 0.0)
    group = RankGroup(
        "assessor", AssessWorker, [options], (task,),
        deadlines=cluster.deadlines, should_stop=runtime.should_stop, allow_s=runtime.allow_s,
    )  # fmt: skip
    accuracies: dict[bool, list[float]] = {True: [], False: []}
    try:
        group.start()
        held_out, written = group.call("held_out"), group.call("write")
        for done, (seed, pretrained) in enumerate((s, p) for s in range(seeds) for p in (True, False)):
            runtime.stop_if_asked()
            accuracies[pretrained].append(group.call("fine_tune", pretrained, runtime.seed + seed))
            runtime.tracker.progress(done + 1, 2 * seeds, "fine-tunings")
    finally:
        group.shutdown()
    held_out["perplexity"] = math.exp(min(held_out.get("mlm_loss", held_out["loss"]), 700.0))
    return held_out, written, tuple(accuracies[True]), tuple(accuracies[False])


def written_assessment(result: Assessed, runtime: Runtime) -> AssessedTransformer:
    """Write assessment.json."""
    directory = runtime.artifact_dir("report")
    (directory / "assessment.json").write_text(json.dumps(asdict(result), indent=1))
    return AssessedTransformer(AssessmentReport(directory))
