"""`framework sample`: a model's responses to prompts, with what the rewards give to them, a JSON line each."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TextIO

from framework.actors.awaiting import awaiting, checking
from framework.actors.ray_session import ray_session
from framework.bounds import NonNegativeInt, bounded
from framework.config import RunConfig, compose, given_base
from framework.convert import convert, to_plain
from framework.data.chat_template import own_or_r1_zero, tokenize_prompts
from framework.data.layouts.prompts import load_prompts
from framework.data.readers import write_rows
from framework.data.tokenizer_files import load_tokenizer
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.graph.runner import NullTracker
from framework.observe.progress import StageProgress
from framework.rewards.score_file import describe
from framework.stages.eval_numbers import JudgedGroup
from framework.stages.lengths import fit_lengths
from framework.stages.prompts import PromptsConfig
from framework.stages.sample_file import SampleFile
from framework.stages.sampling import Sampling, SamplingConfig
from framework.types import Prompt

DO_NOT_COUNT = ("cluster", "tracking", "runs_dir", "run", "stage", "engine", "job", "plugins", "algorithm", "data")


@dataclass(frozen=True)
@bounded
class SampleConfig(SamplingConfig):
    """What the command takes besides settings of `job=grpo`; what is not given is as in its training."""

    limit: NonNegativeInt = 0  # prompts, the first of the file; 0: all
    out: Path | None = None  # a file of its own instead of standard output; a killed command then goes on


def main(arguments: Sequence[str], config_dir: Path | None = None, out: TextIO | None = None) -> None:
    """Write a line for each response, and a summary to stderr.

    Raises UserError, before anything starts, for a wrong setting, a prompt that does not fit, a file that is there.
    """
    own, overrides = _split(arguments)
    with checking():
        # Without places: lengths are cut to the model's context below.
        config = compose(["job=grpo", *overrides], config_dir, places=False)
        base, model = given_base(config)
        command = _with_trainings(own, config)
        prompts = _prompts(config, command.limit)
        evaluating = config.stage["evaluate"]  # samples alone, as this command does
        evaluating.reward.check_prompts(prompts)
        template = own_or_r1_zero(config.template, tokenizer := load_tokenizer(base.check().path))
        tokenized = tokenize_prompts(tokenizer, prompts, config=template)
        longest = max(len(prompt.token_ids) for prompt in tokenized)
        whole = replace(evaluating.engine, max_model_len=model.max_position_embeddings)
        engine, limit, why = fit_lengths(whole, model, longest, command.max_tokens)
    if why:
        print(why, file=sys.stderr)
    sampling = Sampling(replace(command, max_tokens=limit), engine, evaluating.reward, template)
    with ExitStack() as stack:
        kept = stack.enter_context(_begun(command.out, _settings(config, command))) if command.out else None
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="framework-sample-")))
        runtime = Runtime("sample", work, work, config.seed, config.cluster, _Progress(), lambda: False)
        with awaiting("Ray to start, or to answer"):
            stack.enter_context(ray_session(config.cluster))
        groups: dict[str, JudgedGroup] = {}
        for group in sampling.run(base.path, tokenized, runtime, kept):
            groups[group.scored.group.prompt.id] = group
            if command.out is None:
                lines = out or sys.stdout
                lines.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows_of(group))
                lines.flush()
        ordered = [groups[prompt.id] for prompt in tokenized]
        if command.out is not None and kept is not None:
            write_rows(command.out, (row for group in ordered for row in rows_of(group)))
            kept.path.unlink()
    print(summary(ordered) + (f"; in {command.out}" if command.out else ""), file=sys.stderr)


def rows_of(group: JudgedGroup) -> Iterator[dict[str, Any]]:
    """A row for each response; `framework score` reads them."""
    scored = group.scored
    prompt = scored.group.prompt
    more = {"entry": prompt.entry, "opened": prompt.opened, "rewards": list(prompt.rewards)}
    asked = {"id": prompt.id, "task": prompt.task, "prompt": prompt.text, "answer": prompt.answer}
    for place, (response, score) in enumerate(zip(scored.group.responses, scored.scores, strict=True)):
        said = {"response": response.text, "finish_reason": response.finish_reason, "tokens": len(response.token_ids)}
        given = {key: value for key, value in more.items() if value}
        line = {**asked, "sample": place, **said, **describe(score), **given}
        yield {**dict(prompt.columns), **line}


def summary(groups: Sequence[JudgedGroup]) -> str:
    """Mean score, share of truncated responses, share of responses with an answer, failures."""
    scores = [score for group in groups for score in group.scored.scores]
    responses = [response for group in groups for response in group.scored.group.responses]
    good = [score for score in scores if not score.error]
    failed = len(scores) - len(good)
    cut = sum(response.finish_reason == "length" for response in responses) / len(responses)
    answered = sum(score.extracted is not None for score in good) / max(len(good), 1)
    mean = f"{sum(score.total for score in good) / len(good):.3f}" if good else "–"
    names = dict.fromkeys(name for score in good for name in score.components)
    means = [(name, [s.components[name] for s in good if name in s.components]) for name in names]
    parts = ", ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in means)
    text = f"{len(responses)} responses to {len(groups)} prompts: mean score {mean} ({parts or 'no component'})"
    text += f", {cut:.1%} truncated, {answered:.1%} with an answer"
    example = next((score.error for score in scores if score.error), "")
    return text + (f", {failed} without a score (for example: {example})" if failed else "")


def _split(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings of the command itself, and those of the job."""
    names = {item.name for item in fields(SampleConfig)} - {"purpose", "votes_by"}
    own: dict[str, Any] = {}
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in names:
            own[key] = _plain(value)
        else:
            overrides.append(argument)
    return own, overrides


def _plain(value: str) -> Any:
    return json.loads(value) if re.fullmatch(r"-?\d{1,18}(\.\d+)?([eE]-?\d{1,3})?", value) else value


def _with_trainings(own: Mapping[str, Any], config: RunConfig) -> SampleConfig:
    """The command's settings; what is left out is as GRPO samples."""
    grpo = config.stage["grpo"]
    defaults = {"temperature": grpo.temperature, "top_p": grpo.top_p, "max_tokens": grpo.longest}

    def no_target(target: str, where: str) -> Any:
        raise UserError(where, target, "must be a plain value")

    found = convert(SampleConfig, {**defaults, **own}, "", no_target)
    assert isinstance(found, SampleConfig)
    if found.temperature == 0 and found.n > 1:
        raise UserError("n", found.n, "must be 1 at temperature 0: all responses would be alike")
    if found.out is not None and found.out.exists():
        raise UserError("out", str(found.out), "is there already: name another, or delete it")
    return found


def _prompts(config: RunConfig, limit: int) -> tuple[Prompt, ...]:
    """All of `data.train`, or of `data.heldout` where that alone is given."""
    data = config.data
    if not isinstance(data, PromptsConfig):
        raise UserError("data", type(data).__name__, "must be prompts")
    if data.train is None and data.heldout is None:
        raise UserError("data.train", None, "must name a file, glob, folder or hub data set of prompts")
    name, key, split = (data.train, "data.train", "train") if data.train else (data.heldout, "data.heldout", "test")
    return tuple(map(data.worded, load_prompts(str(name), data.columns, key, split)[: limit or None]))


def _begun(out: Path, settings: Mapping[str, Any]) -> SampleFile:
    return SampleFile(out.with_name(f"{out.name}.part"), settings)


def _settings(config: RunConfig, command: SampleConfig) -> dict[str, Any]:
    """What responses and scores depend on besides the prompts."""
    plain = {key: value for key, value in to_plain(config).items() if key not in DO_NOT_COUNT and key != "_target_"}
    sampled = {key: getattr(command, key) for key in ("n", "temperature", "top_p", "max_tokens")}
    return {**plain, **sampled, "dtype": config.stage["evaluate"].engine.dtype}


@dataclass(frozen=True)
class _Progress(NullTracker):
    """Shows progress on stderr, and records nothing."""

    display: StageProgress = field(default_factory=StageProgress)

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Show it."""
        self.display.progress("sample", done, total, text)
