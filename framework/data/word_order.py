"""A small task that a rule makes of any text: are some neighbouring words of a document swapped?

SentEval's bigram shift (Conneau et al. 2018, 1805.01070) on whole documents, at up to three places. A model has to know
how the text goes on, which is what pretraining learns; few labels alone do not tell.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from framework.data.text.shard_files import Document

MOST_WORDS = 40
SWAPS = 3


@dataclass(frozen=True)
class Labelled:
    """A text and its class: 1 where words are swapped. Of tasks with pairs of texts, the second too."""

    text: str
    label: int
    pair: str = ""


def word_order(documents: Iterable[Document], count: int, seed: int) -> list[Labelled]:
    """Return `count` examples, a document each, half of them swapped; fewer where there are not so many documents."""
    found: list[Labelled] = []
    for document in documents:
        if len(found) == count:
            break
        words = document.text.split()[:MOST_WORDS]
        places = [at for at in range(1, len(words) - 1, 2) if words[at] != words[at + 1]]
        if not places:
            continue
        label = len(found) % 2
        if label:
            rng = random.Random(f"{seed} {document.id}")
            for at in rng.sample(places, min(SWAPS, len(places))):
                words[at : at + 2] = words[at + 1], words[at]
        found.append(Labelled(" ".join(words), label))
    return found
