"""A small text as sentences of tokens, for the tests of the table of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framework.data.sentences import EncodedDocument, source_of, split_sentences, write_sentences
from framework.data.text.shard_files import Document, document_id
from framework.data.text_tokenizers import Kind, TextTokenizerConfig, control_code, separator, train_text_tokenizer
from framework.data.tokenizer_files import load_tokenizer

ANIMALS = ("cat", "dog", "bird", "horse")
TEXTS = [
    (place, f"The {a} sees the {b}. Then the {b} runs away. The {a} stays at {place}.")
    for place in ("home", "sea")
    for a in ANIMALS
    for b in ANIMALS
    if a != b
]
DOCUMENTS = [Document(document_id(place, text), text, place) for place, text in TEXTS]


def tokenizer_of(directory: Path, kind: Kind, codes: bool = False, vocab_size: int = 320) -> Any:
    config = TextTokenizerConfig(kind, vocab_size, codes)
    names = sorted({control_code(source_of(document)) for document in DOCUMENTS}) if codes else []
    train_text_tokenizer((document.text for document in DOCUMENTS), config, directory, 64, names)
    return load_tokenizer(directory)


def shards_of(directory: Path, tokenizer: Any) -> Path:
    directory.mkdir(exist_ok=True)
    encoded = [
        EncodedDocument(source_of(d), [tokenizer.encode(s, add_special_tokens=False) for s in split_sentences(d.text)])
        for d in DOCUMENTS
    ]
    write_sentences(directory, {"train": encoded, "validation": encoded[::3]}, len(tokenizer), separator(tokenizer))
    return directory
