"""A user's own prompts for a base model: read, split, and put into the model's chat template."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from framework.artifacts import Checkpoint, PromptSet
from framework.bounds import NonNegativeInt, Probability, bounded
from framework.data.layouts.columns import Columns
from framework.data.readers import write_prompts
from framework.data.splits import load_splits
from framework.graph.nodes import Runtime
from framework.types import Prompt


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

    def read(self) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
        """Return train and held-out prompts; raises UserError naming file and line of what is wrong."""
        train, heldout = load_splits(self.train, self.heldout, self.columns, self.heldout_share)
        return train, heldout[: self.max_heldout or None]


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

    def run(self, inputs: PromptsInputs, runtime: Runtime) -> Prepared:
        """Write both splits."""
        from transformers import AutoTokenizer

        tokenizer, directory = AutoTokenizer.from_pretrained(inputs.base.path), runtime.artifact_dir("prompts")
        train, heldout = self.config.read()
        for split, prompts in (("train", train), ("heldout", heldout)):
            write_prompts(directory / f"{split}.jsonl", (_templated(tokenizer, prompt) for prompt in prompts))
        runtime.tracker.progress(1, 1, f"{len(train)} prompts, {len(heldout)} held out")
        return Prepared(PromptSet(directory))


def _templated(tokenizer: Any, prompt: Prompt) -> Prompt:
    """The prompt in the tokenizer's own chat template; without one, in R1-Zero's."""
    if tokenizer.chat_template is None:
        return prompt
    messages = list(prompt.messages) or [{"role": "user", "content": prompt.text}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return replace(prompt, token_ids=tuple(ids))
