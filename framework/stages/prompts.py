"""A user's own prompts for a base model: read, split, and put into the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path

from framework.artifacts import Checkpoint, PromptSet
from framework.bounds import NonNegativeInt, Probability, bounded
from framework.data.chat_template import TemplateConfig, check_token_ids, own_or_r1_zero, tokenize_prompts
from framework.data.layouts.columns import Columns
from framework.data.readers import write_prompts
from framework.data.sources import find_source
from framework.data.splits import load_splits
from framework.data.tokenizer_files import load_tokenizer, vocabulary_size
from framework.errors import UserError
from framework.graph.nodes import Runtime
from framework.rewards.base import RewardConfig
from framework.stages.references import judge_all, judge_given
from framework.types import Prompt

_CHECKED = 256  # prompts that a plan tokenizes, the longest
QUESTION = "{question}"
DATES = ("contest_date", "contest_start")  # of LiveCodeBench, of Codeforces (seconds since 1970)


@dataclass(frozen=True)
@bounded
class PromptsConfig:
    """`train` and `heldout` name a file, glob, folder or hub data set; layouts are recognised by their columns.

    Without `heldout` a share of `train` is set apart by hash of the text; without `train` all is held out.
    """

    train: str | None = None
    heldout: str | None = None
    heldout_share: Probability = 0.1
    columns: Columns = field(default_factory=dict)  # our name -> the file's
    max_heldout: NonNegativeInt = 64  # of them evaluated, the first of the file; 0: all
    # held-out problems of contests from this date on, to this one, both included: 2024-08-01; "": without a bound
    since: str = ""
    until: str = ""
    wording: str = QUESTION  # what each question is put into, for instance behind how the answer is to be written

    def __post_init__(self) -> None:
        if QUESTION not in self.wording:
            raise UserError("data.wording", self.wording, f"must hold {QUESTION}, where the question goes")
        for name in ("since", "until"):
            if getattr(self, name):
                _date(getattr(self, name), f"data.{name}")

    def read(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """Return train and held-out prompts; raises UserError naming file and line of what is wrong."""
        train, heldout = load_splits(self.train, self.heldout, self.columns, self.heldout_share)
        if self.since or self.until:
            found = tuple(prompt for prompt in heldout if self._in_time(prompt))
            if not found:
                between = f"{self.since or 'ever'} to {self.until or 'ever'}"
                raise UserError("data.since", between, f"holds none of the {len(heldout)} held-out problems")
            heldout = found
        return tuple(map(self.worded, train)), tuple(map(self.worded, heldout[: self.max_heldout or None]))

    def _in_time(self, prompt: Prompt) -> bool:
        """Whether a problem's contest lies between the bounds; raises UserError for one without a date."""
        name = next((name for name in DATES if prompt.columns.get(name) is not None), None)
        if name is None:
            raise UserError(prompt.where, "no date", f"data.since needs a column {' or '.join(DATES)}")
        day = _date(prompt.columns[name], f"{prompt.where}: {name}")
        return (not self.since or day >= _date(self.since, "")) and (not self.until or day <= _date(self.until, ""))

    def worded(self, prompt: Prompt) -> Prompt:
        """Return the prompt whose last message puts the question into the wording; tokens that it brings stay."""
        if self.wording == QUESTION or prompt.token_ids:
            return prompt
        asked = {"role": "user", "content": self.wording.replace(QUESTION, prompt.text)}
        return replace(prompt, messages=(*prompt.messages[:-1], asked))

    def named_files(self) -> tuple[Path, ...]:
        """The files that it reads: the stage runs again when one of them changes."""
        named = (("data.train", self.train, "train"), ("data.heldout", self.heldout, "test"))
        return tuple(file for key, name, split in named if name for file in find_source(name, key, split).local)


def _date(value: object, where: str) -> date:
    """A day as ISO writes it, with or without a time, or as seconds since 1970."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC).date()
        return datetime.fromisoformat(str(value)).date()
    except (ValueError, OverflowError, OSError):
        raise UserError(where, value, "must be a date such as 2024-08-01") from None


@dataclass(frozen=True)
class PromptsInputs:
    """The model whose tokenizer and chat template the prompts are put into."""

    base: Checkpoint


@dataclass(frozen=True)
class Prepared:
    """Prompts as token ids."""

    prompts: PromptSet


@dataclass(frozen=True)
class PreparePrompts:
    """The stage."""

    config: PromptsConfig
    template: TemplateConfig = TemplateConfig()  # without a name the tokenizer's own, or R1-Zero's where it has none
    rewards: RewardConfig | None = None  # what is to score the prompts; None: their references are not judged

    def look_ahead(self) -> str:
        """Judge the reference answers of some prompts."""
        return "" if self.rewards is None else judge_given(self.rewards, self._named(self.config.read()))

    def run(self, inputs: PromptsInputs, runtime: Runtime) -> Prepared:
        """Write both splits."""
        tokenizer, directory = load_tokenizer(inputs.base.path), runtime.artifact_dir("prompts")
        template = own_or_r1_zero(self.template, tokenizer)
        train, heldout = self.config.read()
        if self.rewards is not None:
            judge_all(self.rewards, self._named((train, heldout)), runtime)
        for split, prompts in (("train", train), ("heldout", heldout)):
            write_prompts(directory / f"{split}.jsonl", tokenize_prompts(tokenizer, prompts, config=template))
        runtime.tracker.progress(1, 1, f"{len(train)} prompts, {len(heldout)} held out")
        return Prepared(PromptSet(directory))

    def _named(self, splits: Sequence[Sequence[Prompt]]) -> dict[str, Sequence[Prompt]]:
        train, heldout = (f"{name or 'held-out prompts'}" for name in (self.config.train, self.config.heldout))
        return {name: prompts for name, prompts in zip((train, heldout), splits, strict=True) if prompts}


def check_prompts(base: Path, prompts: Sequence[Prompt], template: TemplateConfig, context: int, response: int) -> None:
    """Put the first prompts into the template before a run starts; the stage does so with all.

    Raises UserError if the base's tokenizer is not what its files say, a prompt does not fit template or context, or
    brings tokens beyond the vocabulary.
    """
    tokenizer = load_tokenizer(base)
    size = vocabulary_size(tokenizer)
    for prompt in prompts:
        check_token_ids(prompt, size)
    tokenize_prompts(tokenizer, _longest(prompts), context, response, own_or_r1_zero(template, tokenizer))


def longest_tokens(base: Path, prompts: Sequence[Prompt], template: TemplateConfig) -> int:
    """Return the tokens of the longest prompt, as far as characters tell which those are; raises as `check_prompts`."""
    tokenizer = load_tokenizer(base)
    found = tokenize_prompts(tokenizer, _longest(prompts), config=own_or_r1_zero(template, tokenizer))
    return max(len(prompt.token_ids) for prompt in found)


def _longest(prompts: Sequence[Prompt]) -> list[Prompt]:
    size = {p.id: len(p.text) + sum(len(str(m)) for m in p.messages) + 8 * len(p.token_ids) for p in prompts}
    return sorted(prompts, key=lambda prompt: -size[prompt.id])[:_CHECKED]
