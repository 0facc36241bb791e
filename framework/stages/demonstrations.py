"""What the classic route begins with: text to pretrain on, demonstrations, and requests, all from templates.

A published run has a corpus, people who write demonstrations, and users who ask. Here the text holds good answers and
poor ones to the same requests, so that a base knows both; the demonstrations are a few of the good ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from framework.artifacts import ChatSet, PromptSet, TextSet
from framework.bounds import Bound, NonNegativeInt, PositiveInt, Probability, bounded
from framework.data.chat_shards import Chat
from framework.data.general import KINDS, General, general_requests
from framework.data.readers import write_prompts, write_rows
from framework.data.splits import share_out
from framework.data.text.shard_files import Document, write_text
from framework.errors import UserError, did_you_mean
from framework.graph.nodes import Runtime
from framework.stages.collect import NoInputs


@dataclass(frozen=True)
@bounded
class DemonstrationsConfig:
    """Sizes, and how good the text is."""

    kinds: tuple[str, ...] = KINDS  # of requests (`data.general`)
    documents: PositiveInt = 20_000  # each a request with an answer
    validation_documents: PositiveInt = 400  # set apart
    poor_share: Probability = 0.5  # of the documents: those whose answer is of no use
    demonstrations: NonNegativeInt = 64  # of the train requests; 0: all
    heldout_share: Annotated[float, Bound(above=0, below=1)] = 0.2  # of all different requests

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError("kinds", kind, f"{did_you_mean(kind, KINDS)}kinds are {', '.join(KINDS)}")

    def requests(self, seed: int) -> list[General]:
        """Every request, their kinds mixed."""
        found = [general for kind in self.kinds for general in general_requests(kind, seed)]
        random.Random(seed).shuffle(found)
        return found

    def texts(self, requests: Sequence[General], split: str, seed: int) -> Iterator[Document]:
        """Requests with an answer each, drawn by the seed."""
        drawn, count = random.Random(f"{seed} {split}"), self.documents
        for place in range(count if split == "train" else self.validation_documents):
            general = drawn.choice(requests)
            said = general.poor if drawn.random() < self.poor_share else general.answer.summary
            yield Document(f"{split}-{place}", f"{general.question}\n{said}")


@dataclass(frozen=True)
class Demonstrated:
    """Text, conversations to learn, and requests."""

    text: TextSet
    chats: ChatSet
    prompts: PromptSet


@dataclass(frozen=True)
class MakeDemonstrations:
    """The stage: held-out requests are in no demonstration, though what they are about is in the text."""

    config: DemonstrationsConfig = field(default_factory=DemonstrationsConfig)

    def run(self, inputs: NoInputs, runtime: Runtime) -> Demonstrated:
        """Write all three; raises UserError where nothing is held out."""
        config, seed = self.config, runtime.seed
        requests = config.requests(seed)
        found = {general.prompt().id: general for general in requests}
        train, heldout = share_out([general.prompt() for general in found.values()], config.heldout_share)
        text, chats, prompts = (runtime.artifact_dir(name) for name in ("text", "chats", "prompts"))
        write_text(text, {split: config.texts(requests, split, seed) for split in ("validation", "train")})
        shown = [found[prompt.id] for prompt in train[: config.demonstrations or None]]
        write_rows(chats / "train.jsonl", (asdict(_chat(general)) for general in shown))
        for split, side in (("train", train), ("heldout", heldout)):
            write_prompts(prompts / f"{split}.jsonl", side)
        told = f"{config.documents:,} documents, {len(shown)} demonstrations, {len(train)} + {len(heldout)} requests"
        runtime.tracker.progress(1, 1, told)
        return Demonstrated(TextSet(text), ChatSet(chats), PromptSet(prompts))


def _chat(general: General) -> Chat:
    asked: dict[str, Any] = {"role": "user", "content": general.question}
    return Chat(general.prompt().id, (asked, {"role": "assistant", "content": general.answer.summary}))
