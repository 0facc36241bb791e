"""Documents as sentences of token ids, memory-mapped: what sequences of one or two parts are cut from.

<split>-00000.bin       ids, each document closed by the separator: `data.shards.TokenRows` reads it as a stream too
<split>.sentences.npy   [N + 1] where each sentence begins, and the end
<split>.documents.npy   [D + 1] which sentence each document begins with, and N
<split>.sources.npy     [D] where a document comes from, a place in `sources`
sentences.json          the sources' names
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.shards import ShardsMeta, TokenFile, checked_ids, read_meta, token_dtype, write_meta
from framework.data.text.shard_files import Document, shard_name
from framework.errors import UserError
from framework.types import Int32

SOURCES = "sentences.json"
_END = re.compile(r"(?<=[.!?])\s+(?=\S)|(?<=[。！？])|\n+")  # behind a sentence


def split_sentences(text: str) -> list[str]:
    """Cut behind full stops, question and exclamation marks, and at line ends; blanks at the edges go."""
    return [part for part in map(str.strip, _END.split(text)) if part]


def source_of(document: Document) -> str:
    """Where a document comes from."""
    return document.source or "text"


@dataclass(frozen=True)
class EncodedDocument:
    """A document's sentences as token ids, without special tokens."""

    source: str
    sentences: Sequence[Sequence[int]]


def write_sentences(
    directory: Path, splits: dict[str, Iterable[EncodedDocument]], vocab_size: int, separator: int
) -> ShardsMeta:
    """Write each split; documents without a token are left out."""
    dtype, files, sources = token_dtype(vocab_size), dict[str, tuple[TokenFile, ...]](), dict[str, int]()
    for split, documents in splits.items():
        starts, firsts, of, written = array("q"), array("q"), array("i"), 0
        with (directory / shard_name(split, 0, "bin")).open("wb") as file:
            for document in documents:
                kept = [sentence for sentence in document.sentences if len(sentence)]
                if not kept:
                    continue
                firsts.append(len(starts))
                of.append(sources.setdefault(document.source, len(sources)))
                for sentence in kept:
                    starts.append(written)
                    written += len(sentence)
                written += 1
                ids = [*(token for sentence in kept for token in sentence), separator]
                file.write(checked_ids(ids, vocab_size).astype(dtype).tobytes())
        firsts.append(len(starts))
        starts.append(written)
        np.save(directory / f"{split}.sentences.npy", np.asarray(starts))
        np.save(directory / f"{split}.documents.npy", np.asarray(firsts))
        np.save(directory / f"{split}.sources.npy", np.asarray(of))
        files[split] = (TokenFile(shard_name(split, 0, "bin"), written),)
    (directory / SOURCES).write_text(json.dumps(list(sources)))
    return write_meta(directory, files, vocab_size)


class Sentences:
    """A split, opened. Raises UserError if a file is missing or damaged."""

    def __init__(self, directory: Path, split: str) -> None:
        try:
            meta = read_meta(directory)
            self.sources: list[str] = json.loads((directory / SOURCES).read_text())
            self._ids = np.memmap(directory / shard_name(split, 0, "bin"), meta.dtype, "r")
            self._starts, self._documents, self._of = (
                np.load(directory / f"{split}.{kind}.npy", mmap_mode="r")
                for kind in ("sentences", "documents", "sources")
            )
        except (OSError, ValueError, TypeError) as error:
            raise UserError(str(directory), str(error), "must be sentences as the framework writes them") from None
        if len(self._ids) != int(self._starts[-1]):
            raise UserError(
                str(directory), f"{len(self._ids)} tokens", f"{int(self._starts[-1])} were written: damaged"
            )
        self.vocab_size = meta.vocab_size

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self._documents) - 1

    def source(self, document: int) -> str:
        """Where it comes from."""
        return self.sources[int(self._of[document])]

    def sentences_of(self, document: int) -> range:
        """Its sentences, by number."""
        return range(int(self._documents[document]), int(self._documents[document + 1]))

    def lengths(self) -> Int32:
        """Tokens of each sentence, the separator behind a document's last one counted, [N]."""
        return np.diff(self._starts).astype(np.int32)

    def ids(self, first: int, last: int, closed: bool = False) -> Int32:
        """The tokens of sentences `first` to `last`, both included; `closed`: with the separator of `last`'s document.

        Separators between documents are kept.
        """
        end = int(self._starts[last + 1])
        if not closed and last + 1 == int(self._documents[np.searchsorted(self._documents, last + 1)]):
            end -= 1
        return self._ids[int(self._starts[first]) : end].astype(np.int32)


def stretches(sentences: Sentences, longest: int, across: bool) -> Iterator[tuple[int, int, int]]:
    """Yield (document, first, last) of runs of sentences that fill `longest` tokens as far as whole ones go.

    Of one document, or `across` documents (RoBERTa's full sentences, section 4.2; `document` is the first's then). A
    sentence that is longer stands alone, to be cut.
    """
    lengths, first, size, begun = sentences.lengths(), 0, 0, 0
    for document in range(sentences.documents):
        for number in sentences.sentences_of(document):
            if size and size + int(lengths[number]) > longest:
                yield begun, first, number - 1
                size = 0
            if not size:
                first, begun = number, document
            size += int(lengths[number])
        if not across and size:
            yield document, first, sentences.sentences_of(document)[-1]
            size = 0
    if size:
        yield begun, first, len(lengths) - 1
