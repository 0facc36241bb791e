"""A corpus with planted faults: collected from files, cleaned, tokenized."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framework.artifacts import PromptSet, TextSet
from framework.config import compose
from framework.data.cleaning import CleanConfig
from framework.data.fim import cut_for_fim
from framework.data.readers import Document, read_documents, write_documents, write_prompts
from framework.data.tokenizer_training import FIM_BEGIN, FIM_END, FIM_HOLE, TokenizerConfig
from framework.errors import Stopped, UserError
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import Collect, NoInputs
from framework.stages.tokenizer import Tokenize, TokenizeConfig, TokenizeInputs, TokenizerInputs, TrainTokenizer
from framework.types import Prompt
from tests.unit.stages.test_collect import runtime

LONG = "which of the nine trains from here to the harbour is the last to leave"
RNG = random.Random(0)
CLEAN = {
    split: [" ".join(RNG.choices("abcdefghijklmnop", k=60)) for _ in range(size)]
    for split, size in (("train", 30), ("validation", 6))
}


def near(text: str) -> str:
    return f"{text} q"


PLANTED = {
    "train": {
        "exact": (CLEAN["train"][3].upper(), "exact_duplicate", "train-3"),
        "near": (near(CLEAN["train"][4]), "near_duplicate", "train-4"),
        "long": (f"Guess: {LONG}?", "contaminated", "long"),
        "short": ("Someone asked what is 2 + 3, and left", "contaminated", "short"),
    },
    "validation": {
        "across": (CLEAN["train"][5], "exact_duplicate", "train-5"),
        "near-across": (near(CLEAN["train"][6]), "near_duplicate", "train-6"),
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> CleanInputs:
    tmp = tmp_path_factory.mktemp("planted")
    for split, texts in CLEAN.items():
        rows = [Document(f"{split}-{place}", text) for place, text in enumerate(texts)]
        rows[10:10] = [Document(name, text) for name, (text, _, _) in PLANTED[split].items()]
        write_documents(tmp / "text" / f"{split}.jsonl", rows)
    prompts = [Prompt("long", LONG, "t", "1"), Prompt("short", "What is 2 + 3?", "t", "5")]
    write_prompts(tmp / "prompts" / "heldout.jsonl", prompts)
    write_prompts(tmp / "prompts" / "train.jsonl", [Prompt("x", "which of the two", "t", "1")])
    return CleanInputs(TextSet(tmp / "text"), PromptSet(tmp / "prompts"))


def test_exactly_the_planted_documents_are_gone_from_the_shards(inputs: CleanInputs, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = Clean(CleanConfig()).run(inputs, runtime(tmp_path)).text.check()
    dropped = [json.loads(line) for line in (text.path / "dropped.jsonl").read_text().splitlines()]
    assert dropped == [
        {"split": split, "id": name, "reason": reason, "of": of}
        for split, planted in PLANTED.items()
        for name, (_, reason, of) in planted.items()
    ]
    trained = TrainTokenizer(TokenizerConfig(vocab_size=300), 512, 300).run(TokenizerInputs(text), runtime(tmp_path))
    tokenized = TokenizeInputs(text, trained.tokenizer, inputs.prompts)
    tokenizer = AutoTokenizer.from_pretrained(trained.tokenizer.path)
    for rate in (0.0, 0.5):
        config = TokenizeConfig(fim_rate=rate)
        shards = Tokenize(config, 512).run(tokenized, runtime(tmp_path / f"rate{rate}", seed=7)).shards
        for split, texts in CLEAN.items():
            stream = tokenizer.decode(np.fromfile(shards.path / f"{split}.bin", "uint16"))
            found = stream.replace(tokenizer.bos_token, "").split(tokenizer.eos_token)
            shown = rate if split == "train" else 0.0  # validation is never rearranged
            keys = [f"7 {split}-{place}" for place in range(len(texts))]
            cuts = map(cut_for_fim, texts, [shown] * len(texts), keys)
            marks = (FIM_BEGIN, FIM_HOLE, FIM_END)
            assert found == [
                *("".join(map("".join, zip(marks, c, strict=True))) if len(c) == 3 else c[0] for c in cuts),
                "",
            ]
            assert (found[:-1] != texts) == bool(shown)


def test_a_split_without_documents_left_is_one_clear_error(inputs: CleanInputs, tmp_path: Path) -> None:
    copies = CleanInputs(TextSet(tmp_path / "text"))
    for split in ("train", "validation"):
        write_documents(copies.text.path / f"{split}.jsonl", [Document(split, "the same")])
    with pytest.raises(UserError, match=r"validation\.jsonl: got '1 exact duplicate'; must keep a document"):
        Clean(CleanConfig()).run(copies, runtime(tmp_path))


def test_a_stop_ends_it_at_once(inputs: CleanInputs, tmp_path: Path) -> None:
    asked = iter([False] * 5 + [True] * 2)
    with pytest.raises(Stopped):
        Clean(CleanConfig()).run(inputs, replace(runtime(tmp_path), should_stop=lambda: next(asked)))
    assert not (tmp_path / "out" / "text" / "train.jsonl").exists()
    assert next(asked)  # the sixth document was the last that it looked at


def test_a_given_corpus_replaces_the_generated_documents(tmp_path: Path) -> None:
    rows = [f"{i} apples" for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows[:30]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows[30:]))
    files = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    small = replace(compose([]).data, train_prompts=10, heldout_prompts=4, validation_documents=8)
    config = replace(small, documents_files=files)
    text = Collect(config).run(NoInputs(), runtime(tmp_path)).text
    found = {split: [d.text for d in read_documents(text.path / f"{split}.jsonl")] for split in CLEAN}
    assert (len(found["train"]), len(found["validation"])) == (32, 8)
    assert sorted(found["train"] + found["validation"]) == sorted(rows)
    assert found["validation"] != rows[:8]
    with pytest.raises(UserError, match="40 documents'; must be more than the 40 of validation"):
        Collect(replace(config, validation_documents=40)).run(NoInputs(), runtime(tmp_path / "few"))


@pytest.mark.parametrize("name", ["fim_rate", "split_rate"])
def test_rates_are_shares(name: str) -> None:
    with pytest.raises(UserError, match=f"TokenizeConfig.{name}"):
        TokenizeConfig(**{name: 1.5})
