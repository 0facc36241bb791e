"""One process that tries a pretrained transformer: on held-out text, and fine-tuned beside a fresh one of its sizes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from framework.actors.rank_group import Rank
from framework.bounds import Bound, NonNegativeFloat, PositiveFloat, PositiveInt, bounded
from framework.data.text.shard_files import read_text
from framework.data.tokenizer_files import load_tokenizer
from framework.data.word_order import Labelled, word_order
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.roles.supervised_data import Data


@dataclass(frozen=True)
@bounded
class FineTuning:
    """A classification head, and all weights under it. Defaults: a rate and batch of BERT's (1810.04805 section 4.1).

    BERT takes 3 epochs of thousands of texts; here are few texts, and so more of them.
    """

    texts: PositiveInt = 512  # labelled, to train on
    heldout: PositiveInt = 500
    epochs: PositiveInt = 6
    per_step: PositiveInt = 32
    lr: PositiveFloat = 5e-5


@dataclass(frozen=True)
@bounded
class Writing:
    """How causal models continue. Defaults: CTRL's penalised sampling (1909.05858 section 4.1), near-greedy.

    Logits of tokens that stand there already are divided by theta (multiplied where they are negative).
    """

    codes: tuple[str, ...] = ()  # domains that CTRL writes of; empty: all that it has learned
    theta: Annotated[float, Bound(least=1)] = 1.2
    temperature: NonNegativeFloat = 0.0  # 0: the likeliest token
    tokens: PositiveInt = 48


@dataclass(frozen=True)
class Assessment:
    """What to try."""

    checkpoint: Path
    text: Path  # a TextSet
    data: Data  # as it was pretrained
    engine: DeepSpeedConfig
    tuning: FineTuning
    longest: int
    writing: Writing
    prompts: tuple[str, ...]  # to be continued; none: the model does not write
    labelled: tuple[tuple[Labelled, ...], tuple[Labelled, ...]] | None = None  # to train on and held out; None: swaps
    classes: int = 2


class AssessWorker(Rank):
    """The process."""

    def start(self, rank: int, world: int, host: str, port: int, task: Assessment) -> None:
        """Get ready."""
        self.join(rank, world, host, port)
        self._task = task
        import torch
        from transformers.utils import logging

        torch.set_num_threads(max(1, task.engine.threads))
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def held_out(self) -> dict[str, float]:
        """Loss and metrics of its own objective on the validation text, and how many parameters it has."""
        from framework.engines.sharded_load import load_sharded
        from framework.engines.trainer import Trainer

        task = self._task
        feed = task.data.open(seed=0)
        model = load_sharded(task.checkpoint, task.engine)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        found = Trainer(model, task.engine, feed.objective).evaluate(feed.held_out)
        return {**found, "parameters": float(parameters)}

    def write(self) -> dict[str, str]:
        """Return prompt -> how the model goes on, special tokens shown."""
        import torch
        from transformers import AutoModelForCausalLM

        task, writing = self._task, self._task.writing
        if not task.prompts:
            return {}
        tokenizer = load_tokenizer(task.checkpoint)
        model: Any = AutoModelForCausalLM.from_pretrained(task.checkpoint).eval()
        torch.manual_seed(0)
        sampled = {"do_sample": True, "temperature": writing.temperature} if writing.temperature else {}
        found = {}
        for prompt in task.prompts:
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
            room = min(writing.tokens, task.longest - ids.shape[1])
            whole = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room,
                repetition_penalty=writing.theta,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **sampled,
            )
            found[prompt] = tokenizer.decode(whole[0, ids.shape[1] :])
        return found

    def fine_tune(self, pretrained: bool, seed: int) -> float:
        """Return the accuracy on held-out texts, the head and what else is fresh drawn by `seed`."""
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        from framework.engines.trainer import Trainer
        from framework.objectives.classify import Classify

        task, tuning = self._task, self._task.tuning
        tokenizer = load_tokenizer(task.checkpoint)
        config = AutoConfig.from_pretrained(task.checkpoint, num_labels=task.classes)
        config.pad_token_id = tokenizer.pad_token_id
        torch.manual_seed(seed)
        if pretrained:
            model: Any = AutoModelForSequenceClassification.from_pretrained(task.checkpoint, config=config)
        else:
            model = AutoModelForSequenceClassification.from_config(config)
        steps = tuning.epochs * -(-tuning.texts // tuning.per_step)
        schedule = LrSchedule(tuning.lr, "cosine", steps // 10, steps, final_ratio=0.0)
        engine = replace(task.engine, schedule=schedule)
        objective = Classify(tokenizer.pad_token_id, pad_left=config.model_type == "xlnet")
        trainer = Trainer(model, engine, objective)
        train = self._encoded("train", tuning.texts, tokenizer)
        order = random.Random(seed)
        for _ in range(tuning.epochs):
            order.shuffle(train)
            for first in range(0, len(train), tuning.per_step):
                trainer.step(train[first : first + tuning.per_step])
        return trainer.evaluate(self._encoded("validation", tuning.heldout, tokenizer))["accuracy"]

    def _encoded(self, split: str, count: int, tokenizer: Any) -> list[Any]:
        from framework.objectives.classify import EncodedText

        task = self._task
        if task.labelled is not None:
            found = list(task.labelled[split != "train"][:count])
        else:
            found = word_order(read_text(task.text, split), count, seed=0)
        pairs = [each.pair for each in found] if any(each.pair for each in found) else None
        rows = tokenizer([each.text for each in found], pairs, truncation=True, max_length=task.longest)["input_ids"]
        return [EncodedText(np.asarray(ids, np.int32), each.label) for ids, each in zip(rows, found, strict=True)]
