"""A corpus with planted faults: collected from files, cleaned, tokenized."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from framework.artifacts import PromptSet, TextSet, read_listing
from framework.config import compose
from framework.data.cleaning import CleanConfig
from framework.data.fim import cut_for_fim
from framework.data.readers import write_prompts
from framework.data.text import clean_steps
from framework.data.text.shard_files import Document, read_text, write_text
from framework.data.text.token_steps import TokenizeConfig
from framework.data.tokenizer_training import FIM_BEGIN, FIM_END, FIM_HOLE, TokenizerConfig
from framework.errors import Stopped, UserError
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import Collect, NoInputs
from framework.stages.tokenizer import Tokenize, TokenizeInputs, TokenizerInputs, TrainTokenizer
from framework.types import Prompt
from tests.beside import patch_beside
from tests.unit.stages.test_collect import runtime

LONG = "which of the nine trains from here to the harbour is the last to leave"
RNG = random.Random(0)
CLEAN = {
    split: [" ".join(RNG.choices("abcdefghijklmnop", k=60)) for _ in range(size)]
    for split, size in (("train", 30), ("validation", 6))
}


def named(name: str) -> str:
    """An id as documents have, copies behind what they are copies of."""
    kind, _, place = name.partition("-")
    return f"{int(place) if kind in CLEAN else 10**6 + len(name):032x}"


def near(text: str) -> str:
    return f"{text} q"


PLANTED = {
    "train": {
        "exact": (CLEAN["train"][3].upper(), "exact_duplicate", "train-3"),
        "copy": (near(CLEAN["train"][4]), "near_duplicate", "train-4"),
        "passage": (f"Guess: {LONG}?", "contaminated", "long"),
        "brief-one": ("Someone asked what is 2 + 3, and left", "contaminated", "short"),
    },
    "validation": {
        "across": (CLEAN["train"][5], "exact_duplicate", "train-5"),
        "near-across": (near(CLEAN["train"][6]), "near_duplicate", "train-6"),
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> CleanInputs:
    tmp = tmp_path_factory.mktemp("planted")
    splits = {}
    for split, texts in CLEAN.items():
        rows = [Document(named(f"{split}-{place}"), text) for place, text in enumerate(texts)]
        rows[10:10] = [Document(named(name), text) for name, (text, _, _) in PLANTED[split].items()]
        splits[split] = rows
    write_text(tmp / "text", splits)
    prompts = [Prompt("long", LONG, "t", "1"), Prompt("short", "What is 2 + 3?", "t", "5")]
    write_prompts(tmp / "prompts" / "heldout.jsonl", prompts)
    write_prompts(tmp / "prompts" / "train.jsonl", [Prompt("x", "which of the two", "t", "1")])
    return CleanInputs(TextSet(tmp / "text"), PromptSet(tmp / "prompts"))


def test_exactly_the_planted_documents_are_gone_from_the_shards(inputs: CleanInputs, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = Clean(CleanConfig()).run(inputs, runtime(tmp_path)).text.check()
    dropped = [json.loads(line) for file in sorted(text.path.glob("dropped-*")) for line in file.open()]
    planted = {name: (split, *what[1:]) for split, rows in PLANTED.items() for name, what in rows.items()}
    found = {row["id"]: (row["split"], row["reason"], row["of"]) for row in dropped}
    assert len(found) == len(dropped) == len(planted)
    for name, (split, reason, of) in planted.items():
        assert found[named(name)] == (split, reason, of if reason == "contaminated" else named(of))
    counts = read_listing(text.path)[1]
    assert counts == {
        "train": 30, "validation": 6, "dropped": 6,
        "dropped.contaminated": 2, "dropped.exact_duplicate": 2, "dropped.near_duplicate": 2,
    }  # fmt: skip
    samples = [json.loads(line) for line in (text.path / "dropped_samples.jsonl").open()]
    assert {row["id"] for row in samples} == set(map(named, planted))
    assert all(row["text"] for row in samples)
    trained = TrainTokenizer(TokenizerConfig(vocab_size=300), 512, 300).run(TokenizerInputs(text), runtime(tmp_path))
    tokenized = TokenizeInputs(text, trained.tokenizer, inputs.prompts)
    tokenizer = AutoTokenizer.from_pretrained(trained.tokenizer.path)
    for rate in (0.0, 0.5):
        config = TokenizeConfig(fim_rate=rate)
        shards = Tokenize(config, 512).run(tokenized, runtime(tmp_path / f"rate{rate}", seed=7)).shards
        for split, texts in CLEAN.items():
            stream = tokenizer.decode(np.fromfile(shards.path / f"{split}-00000.bin", "uint16"))
            found = stream.replace(tokenizer.bos_token, "").split(tokenizer.eos_token)
            shown = rate if split == "train" else 0.0  # validation is never rearranged
            keys = [f"7 {named(f'{split}-{place}')}" for place in range(len(texts))]
            cuts = map(cut_for_fim, texts, [shown] * len(texts), keys)
            marks = (FIM_BEGIN, FIM_HOLE, FIM_END)
            assert found == [
                *("".join(map("".join, zip(marks, c, strict=True))) if len(c) == 3 else c[0] for c in cuts),
                "",
            ]
            assert (found[:-1] != texts) == bool(shown)


def test_a_split_without_documents_left_is_one_clear_error(inputs: CleanInputs, tmp_path: Path) -> None:
    copies = CleanInputs(TextSet(tmp_path / "text"))
    write_text(copies.text.path, {split: [Document(split, "the same")] for split in ("train", "validation")})
    with pytest.raises(UserError, match=r"validation-00000\.jsonl: got '1 kept, 1 exact duplicate'; must keep a doc"):
        Clean(CleanConfig()).run(copies, runtime(tmp_path))


def test_a_stop_ends_it_between_shards_and_what_is_done_stays(inputs: CleanInputs, tmp_path: Path) -> None:
    asked = iter([True])
    with pytest.raises(Stopped):
        Clean(CleanConfig()).run(inputs, replace(runtime(tmp_path), should_stop=lambda: next(asked)))
    judged = tmp_path / "work" / "judged"
    assert [file.name for file in judged.glob("done-*")] == ["done-00000.json"]
    before = (judged / "train-00000.jsonl").stat().st_mtime_ns
    assert Clean(CleanConfig()).run(inputs, runtime(tmp_path)).text.check()
    assert (judged / "train-00000.jsonl").stat().st_mtime_ns == before


def test_a_given_corpus_replaces_the_generated_documents(tmp_path: Path) -> None:
    rows = [f"{i} apples" for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows[:30]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows[30:]))
    files = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    small = replace(compose([]).data, train_prompts=10, heldout_prompts=4, validation_documents=8)
    config = replace(small, documents_files=files)
    text = Collect(config).run(NoInputs(), runtime(tmp_path)).text
    found = {split: [d.text for d in read_text(text.path, split)] for split in CLEAN}
    assert (len(found["train"]), len(found["validation"])) == (36, 4)
    assert sorted(found["train"] + found["validation"]) == sorted(rows)
    assert found["validation"] != rows[:4]


@pytest.mark.parametrize("name", ["fim_rate", "split_rate"])
def test_rates_are_shares(name: str) -> None:
    with pytest.raises(UserError, match=f"TokenizeConfig.{name}"):
        TokenizeConfig(**{name: 1.5})


def test_partitions_change_nothing(inputs: CleanInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for least in (2**17, 3):
        monkeypatch.setattr(clean_steps, "_LEAST_RECORDS", least)
        code = f"from framework.data.text import clean_steps; clean_steps._LEAST_RECORDS = {least}"
        patch_beside(tmp_path / "patch", monkeypatch, code)
        text = Clean(CleanConfig()).run(inputs, runtime(tmp_path / str(least))).text.path
        found.append({file.name: file.read_text() for file in text.glob("*.jsonl")})
    assert len(list((tmp_path / "3" / "work" / "near").glob("edges-*"))) > 100
    assert found[0] == found[1]
