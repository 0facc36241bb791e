"""Verifiable tasks, from reasoning-gym or `data.bilingual`: nothing to download, any number of prompts."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from framework.bounds import PositiveFloat, bounded
from framework.data.entries import encode_entry
from framework.errors import UserError, did_you_mean
from framework.types import Prompt

# Where reasoning-gym puts an answer that its verifier accepts, for questions that have several and so state none.
EXAMPLES = ("example_correct_answer", "example_answer", "possible_answer")


@dataclass(frozen=True)
@bounded
class TaskConfig:
    """One task (a reasoning-gym data set, or one of `data.bilingual`), its parameters, its share of the prompts."""

    params: Mapping[str, Any] = field(default_factory=dict)
    weight: PositiveFloat = 1.0
    rewards: tuple[str, ...] = ()  # the components that score its prompts; empty: all of the run


def same_text(text: str) -> str:
    """Return what two texts share that differ in case, white space or the width of characters alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_of(text: str, heldout_share: float) -> str:
    """Return "train" or "heldout", decided by the question's text alone; see `same_text` for what is one text.

    Every part of a run (pretraining text, RL prompts, evaluation) asks this one function, so a held-out question can
    reach neither training set, whatever seeds and sizes are chosen.
    """
    draw = int.from_bytes(hashlib.sha256(b"split:" + same_text(text).encode()).digest()[:8], "big") / 2**64
    return "heldout" if draw < heldout_share else "train"


def prompt_id(task: str, text: str) -> str:
    """Stable id: the task's name and a hash of the question."""
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def check_task(task: str) -> None:
    """Raise UserError unless this is a task of `data.bilingual`, or a reasoning-gym data set for use by itself."""
    from framework.data.bilingual import NAMES

    if task in NAMES:
        return
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        allowed = f"must name a reasoning-gym data set, or one of {', '.join(NAMES)}"
        raise UserError(f"data.tasks.{task}", task, did_you_mean(task, [*DATASETS, *NAMES]) + allowed)
    if task == "composite":
        raise UserError(f"data.tasks.{task}", task, "name its parts under data.tasks instead, each with its weight")


def generate(task: str, config: TaskConfig, seed: int, size: int) -> Iterator[Prompt]:
    """Yield up to `size` prompts of one task; repeats are possible. A question is kept to the letter, white space too.

    A question that states no answer of its own goes out with the example that reasoning-gym gives, and is left out
    where the task's verifier refuses that. Raises UserError for a task that is unknown or cannot be verified, and for
    parameters that it does not take.
    """
    from framework.data.bilingual import NAMES, generate_bilingual

    check_task(task)
    if task in NAMES:
        for prompt in generate_bilingual(task, config.params, seed, size):
            yield replace(prompt, rewards=config.rewards)
        return
    import reasoning_gym

    try:
        dataset = reasoning_gym.create_dataset(task, size=size, seed=seed, **config.params)
        for entry in dataset:
            example = None if entry["answer"] is not None else _example(task, entry)
            if example is None or dataset.score_answer(example, entry) >= 1:
                answer = entry["answer"] if example is None else example
                yield replace(_prompt(task, entry, answer, config.params), rewards=config.rewards)
    except UserError:
        raise
    except Exception as error:  # whatever a data set raises for parameters that its own checks let pass
        reason = f"reasoning-gym says: {type(error).__name__}: {error}"
        raise UserError(f"data.tasks.{task}.params", dict(config.params), reason) from None


def _example(task: str, entry: Mapping[str, Any]) -> str:
    """The example of an answer in a record's metadata; raises UserError if there is none."""
    found = next((entry["metadata"][name] for name in EXAMPLES if entry["metadata"].get(name) is not None), None)
    if found is None:
        reason = "states no answer to its questions, so nothing can show that its verifier works"
        raise UserError(f"data.tasks.{task}", task, reason)
    return found if isinstance(found, str) else json.dumps(found)


def _prompt(task: str, entry: Mapping[str, Any], answer: str, params: Mapping[str, Any]) -> Prompt:
    """One reasoning-gym record as a prompt. The parameters go along: some verifiers need those of their task."""
    try:
        record = encode_entry({**entry, "params": dict(params)})
    except TypeError as error:
        raise UserError(f"data.tasks.{task}", task, f"its record cannot be kept: {error}") from None
    text = entry["question"]
    return Prompt(prompt_id(task, text), text, task, answer, entry=record)


def unique_prompts(
    tasks: Mapping[str, TaskConfig], split: str, size: int, heldout_share: float, seed: int
) -> list[Prompt]:
    """Return `size` different prompts of `split`, the tasks in proportion to their weights, in a mixed order.

    Raises UserError if a task has fewer different prompts than its share.
    """
    total = sum(task.weight for task in tasks.values())
    columns: list[list[Prompt]] = []
    for index, (name, task) in enumerate(sorted(tasks.items())):
        wanted = round(size * task.weight / total) if index < len(tasks) - 1 else size - sum(map(len, columns))
        columns.append(_take_unique(name, task, split, wanted, heldout_share, seed + 1000 * index))
    mixed = [
        (row / len(column), place, prompt) for place, column in enumerate(columns) for row, prompt in enumerate(column)
    ]
    return [prompt for _, _, prompt in sorted(mixed, key=lambda item: item[:2])]


def _take_unique(name: str, task: TaskConfig, split: str, wanted: int, heldout_share: float, seed: int) -> list[Prompt]:
    found: dict[str, Prompt] = {}
    draws = max(64, 4 * wanted)
    for attempt in range(8):  # more draws while they bring new prompts: small tasks repeat themselves
        before = len(found)
        for prompt in generate(name, task, seed + attempt, draws * 2**attempt):
            if len(found) == wanted:
                return list(found.values())
            if split_of(prompt.text, heldout_share) == split:
                found.setdefault(prompt.id, prompt)
        if len(found) - before < 0.01 * wanted:
            break
    if len(found) < wanted:
        raise UserError(
            f"data.tasks.{name}", f"{wanted} {split} prompts", f"the task has only about {len(found)} different ones"
        )
    return list(found.values())
