"""Models that only read, as a stranger meets them: job=eval by text and GLUE's files, chat and serve; one line each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework import cli
from framework.artifacts import Artifact
from framework.config import build_graph, compose
from framework.data.glue import classes_of, read_labelled
from framework.data.text_tokenizers import control_code
from framework.engines.plain_chat import check_codes, plain_chat
from framework.errors import UserError
from framework.models.spec import build_model
from framework.models.table.bert import Bert, Roberta
from framework.models.table.ctrl import Ctrl
from framework.stages.text_eval import ReadText, context_of, learned_by
from framework.types import SamplingParams
from tests.unit.models.test_table import SIZES
from tests.unit.table_text import TEXTS, tokenizer_of

SST2 = "sentence\tlabel\nit 's a \"charming and often affecting journey . \t1\nunflinchingly bleak\t0\n"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("readers"), {}
    sizes: dict[str, Any] = SIZES | {"max_position_embeddings": 66, "vocab_size": 320, "pad_token_id": 0}
    for name, kind, spec in (("bert", "wordpiece", Bert(**sizes)), ("ctrl", "gpt2", Ctrl(**sizes))):
        tokenizer = tokenizer_of(folder / name, kind, codes=name == "ctrl")  # type: ignore[arg-type]
        build_model(replace(spec, eos_token_id=tokenizer.eos_token_id), 0).save_pretrained(folder / name)
        found[name] = folder / name
    return found


def planned(base: Path, *words: str) -> Any:
    return build_graph(compose(["job=eval", f"base={base}", *words]))


def test_an_encoder_is_evaluated_by_text_and_by_labelled_text(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text(SST2)
    (tmp_path / "sea.txt").write_text(TEXTS[0][1])
    words = (f"stage.text.documents={tmp_path / 'sea.txt'}", f"stage.text.train={tmp_path / 'dev.tsv'}")
    graph = planned(bases["bert"], *words, f"stage.text.heldout={tmp_path / 'dev.tsv'}")
    graph.check()
    assert list(graph.nodes) == ["text", "tokens", "eval"]
    read = graph.nodes["text"].stage
    assert isinstance(read, ReadText)
    assert read.look_ahead() == "1 documents, 2 labelled texts"
    assert (read.config.read()[0].source, read.config.read()[0].text) == ("sea", TEXTS[0][1])
    assert all(
        not isinstance(edge, Artifact) or edge.path == bases["bert"] for edge in graph.nodes["eval"].edges.values()
    )
    named = ("benchmark=sst2", f"benchmark.file={tmp_path / 'dev.tsv'}", f"stage.text.train={tmp_path / 'dev.tsv'}")
    stage = planned(bases["bert"], *named).nodes["eval"].stage
    assert (stage.label, [each.label for each in stage.config.labelled()[1]]) == ("sst2", ["1", "0"])


def test_what_each_kind_predicts() -> None:
    def learned(kind: str) -> str:
        return repr(learned_by({"model_type": kind}, Path(), None, []))  # type: ignore[arg-type]

    assert "layout='next'" in learned("bert")
    assert "layout='order'" in learned("albert")
    assert "layout='full'" in learned("roberta")
    assert [learned(kind).partition("(")[0] for kind in ("xlnet", "gpt2", "qwen3")] == ["Permuted", "Causal", "Causal"]
    sizes = Roberta(**SIZES | {"pad_token_id": 1, "max_position_embeddings": 514}).hf_config().to_dict()
    assert context_of(sizes) == 512
    assert [context_of({"n_positions": 256}), context_of({})] == [256, 512]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sentence\nfine\n", "dev.tsv:2: got 'columns sentence'; must be sentence and label"),
        ("a\tb\nfine\t1\n", "dev.tsv:2: got 'columns a, b'"),
        ("sentence\tlabel\nfine\t-1\n", "dev.tsv:2: label: got '-1'; must be a label: a test set of GLUE has none"),
        ("sentence\tlabel\nfine\n", "dev.tsv:2: got '1 values'; the header has 2"),
        ("sentence\tlabel\n \t1\n", "dev.tsv:2: sentence: got ' '; must not be empty"),
        ("sentence\tlabel\nfine\t1\n", "stage.text.train: got '1'; must hold texts of two labels or more"),
    ],
)
def test_a_labelled_file_that_is_wrong_is_one_line(
    content: str, said: str, bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dev.tsv").write_text(content)
    words = [f"stage.text.{key}={tmp_path / 'dev.tsv'}" for key in ("train", "heldout")]
    assert cli.main(["plan", "job=eval", f"base={bases['bert']}", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_pairs_have_both_texts_and_labels_keep_their_words(tmp_path: Path) -> None:
    file = tmp_path / "rte.tsv"
    file.write_text(
        "index\tsentence1\tsentence2\tlabel\n0\tA cat.\tAn animal.\tentailment\n1\tA cat.\tA dog.\tnot_entailment\n"
    )
    found = read_labelled(str(file), "k", "train")
    assert [(each.text, each.pair, each.label) for each in found][1] == ("A cat.", "A dog.", "not_entailment")
    assert classes_of(found, found, "k") == ["entailment", "not_entailment"]
    assert len(read_labelled(str(file), "k", "train", most=1)) == 1
    other = [replace(found[0], label="maybe")]
    with pytest.raises(
        UserError, match=r"k\.heldout: got 'maybe'; labels that are learned: entailment, not_entailment"
    ):
        classes_of(found, other, "k")


def test_what_the_text_or_the_tokenizer_lacks_shows_before_the_run(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "hills.txt").write_text(TEXTS[0][1])
    with pytest.raises(
        UserError, match=r"stage\.text\.documents: got 'hills'; must be of files that are named as a code"
    ):
        planned(bases["ctrl"], f"stage.text.documents={tmp_path / 'hills.txt'}")
    tokenizer_of(tmp_path / "bert", "gpt2")
    shutil.copy(bases["bert"] / "config.json", tmp_path / "bert")
    shutil.copy(bases["bert"] / "model.safetensors", tmp_path / "bert")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: got 'no mask_token'; must name the mask_token"):
        planned(tmp_path / "bert", f"stage.text.documents={tmp_path / 'hills.txt'}")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("plan", "job=eval", "base={bert}"), "stage.text.documents: got None; must name text"),
        (("plan", "job=eval", "base={bert}", "stage.text.train=x.tsv"), "stage.text.train: got 'x.tsv'; goes with"),
        (
            ("plan", "job=eval", "base={bert}", "stage.text.documents=x.txt", "data.heldout=x.jsonl"),
            "data.heldout: got 'x.jsonl'; must be left out with stage.text",
        ),
        (("plan", "job=grpo", "base={bert}", "data.train=x"), "model_type=bert'; must be a causal language model"),
        (("chat", "{bert}"), "got 'BertForPreTraining'; must continue text: an encoder fills in hidden tokens"),
        (("chat", "{ctrl}", "--system", "x"), "--system: got 'x'; must be left out: without a chat template"),
        (("serve", "{bert}"), "got 'BertForPreTraining'; must continue text"),
        (("serve", "{ctrl}"), "got 'model_type=ctrl'; vLLM, which serves, has no such model: framework chat has"),
    ],
)
def test_what_a_model_that_reads_cannot_do_is_one_line(
    command: tuple[str, ...], said: str, bases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(**bases) for word in command]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("framework: ")]
    assert len(error) == 1
    assert said in error[0]


def test_ctrl_continues_a_line_behind_its_code(bases: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    code, params = control_code("sea"), SamplingParams(0.0, 1.0, 6, 1)
    lines = [f"{code} The cat", "<|see|> The cat", "word " * 80, f"{code} The cat"]
    plain_chat(bases["ctrl"], params, lines, said.append)
    assert len(said) == 2
    assert said[0] == said[1]  # greedy
    errors = list(filter(None, capsys.readouterr().err.splitlines()))
    known = f"the model has {control_code('home')}, {code}"
    assert errors[0] == f"control code: got '<|see|>'; did you mean '{code}'? {known}"
    assert "must be below the context of 66" in errors[1]
    check_codes("no code at all < | >", [])
