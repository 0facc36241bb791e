"""job=transformers: its graph, its recipes, and what it says to settings that cannot work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from framework import cli
from framework.config import build_graph, compose
from framework.errors import UserError
from framework.graph.plan import describe_plan
from framework.stages.transformer import TransformerConfig, check_teacher
from tests.unit.table_text import tokenizer_of

ROWS = ("bert", "roberta", "albert", "distilbert", "xlnet", "gpt2", "megatron", "ctrl")


def test_each_row_is_trained_from_one_text_and_assessed() -> None:
    graph = build_graph(compose(["job=transformers"]))
    assert set(ROWS) | {f"assess_{name}" for name in ROWS} <= set(graph.nodes)
    assert [name for name in graph.nodes if name.endswith("_text")] == [
        "wordpiece_text", "byte_bpe_text", "gpt2_bpe_text", "ctrl_bpe_text",
    ]  # fmt: skip
    order = [node.name for node in graph.order()]
    assert order.index("bert") < order.index("distilbert")


def test_until_a_row_makes_that_row_alone_with_its_teacher() -> None:
    nodes = set(build_graph(compose(["job=transformers", "until=distilbert"])).nodes)
    assert nodes == {"collect", "clean", "wordpiece", "wordpiece_text", "bert", "assess_bert", "distilbert"}
    assert "gpt2_bpe" in build_graph(compose(["job=transformers", "until=gpt2_bpe"])).nodes


def test_published_sizes_are_planned() -> None:
    config = compose(["job=transformers", "recipe=table_published"])
    plan = describe_plan(build_graph(config), config.cluster, "")
    for text in ("bert_base: 110.", "roberta_base: 124.", "albert_base: 11.", "distilbert_base: 6", "xlnet_base: 116.",
                 "gpt2_small: 124.", "megatron_gpt2_8b: 8.32B", "ctrl: 1.64B"):  # fmt: skip
        assert text in plan, text


def test_the_papers_batches_and_rates() -> None:
    stage = compose(["job=transformers", "recipe=table_published"]).stage
    rows = {name: row for name, row in stage.items() if isinstance(row, TransformerConfig)}
    found = {
        name: (row.steps, row.sequences_per_step, row.max_tokens, row.engine.schedule.lr) for name, row in rows.items()
    }
    assert found["bert"] == (1_000_000, 256, 512, 1e-4)
    assert found["roberta"] == (500_000, 8192, 512, 6e-4)
    assert found["ctrl"][1:3] == (1024, 256)
    assert rows["bert"].engine.schedule.at(1_000_000) == 0
    assert rows["albert"].learns.masking.longest == 3
    assert (rows["bert"].learns.layout, rows["roberta"].learns.layout, rows["albert"].learns.layout) == (
        "next", "full", "order",
    )  # fmt: skip
    assert rows["bert"].learns.masking.rate == rows["roberta"].learns.masking.rate == 0.15
    weights = rows["distilbert"].learns.weights
    assert (weights.temperature, weights.soft, weights.masked, weights.cosine) == (2, 5, 2, 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stage.distilbert.learns.teacher=roberta",
         "stage.distilbert.learns.teacher: got 'roberta'; must have the vocabulary of wordpiece: this row's is"),
        ("stage.distilbert.learns.teacher=burt", "did you mean 'bert'?"),
        ("stage.ctrl.learns.codes=[logik]",
         "stage.ctrl.learns.codes: got 'logik'; did you mean 'logic'? the text has logic, multiple_choice"),
        ("stage.ctrl.tokenizer=gpt2_bpe", "stage.ctrl.tokenizer: got 'gpt2_bpe'; must have control codes: ctrl_bpe"),
        ("stage.assess.writing.codes=[poems]", "stage.assess.writing.codes: got 'poems'; ctrl learns logic, multiple"),
        ("stage.bert.tokenizer=wordpeace", "stage.bert.tokenizer: got 'wordpeace'; did you mean 'wordpiece'?"),
        ("stage.wordpiece.vocab_size=600", "must be at most stage.bert.model.vocab_size=512"),
        ("stage.roberta.max_tokens=129", "stage.roberta.max_tokens: got 129; must be at most 128"),
        ("stage.bert.learns.masking.masked=0.95", "must be at most 0.05: masked=0.95"),
        ("stage.bert.model.num_attention_heads=5", "must be a multiple of num_attention_heads=5"),
        ("stage.megatron.workers=3", "stage.megatron.workers: got 3; must divide model.num_attention_heads=4"),
        ("stage.bert.engine.tensor_parallel=true", "stage.bert.engine.tensor_parallel: got True; must be false: GPT-2"),
        ("data.documents=[nowhere.txt]", "nowhere.txt: got 'no such file'; data.documents must be a file"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(override: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "job=transformers", override]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_teacher_that_cannot_teach_shows_before_the_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def said(sizes: dict[str, Any]) -> str:
        (tmp_path / "config.json").write_text(json.dumps(sizes))
        assert cli.main(["plan", "job=transformers", f"stage.distilbert.learns.teacher={tmp_path}"]) == 2
        return capsys.readouterr().err.strip()

    assert cli.main(["plan", "job=transformers", "until=distilbert", "stage.distilbert.learns.teacher=burt"]) == 2
    assert "got 'burt'; did you mean 'bert'? must be a row (bert, " in capsys.readouterr().err
    where = f"stage.distilbert.learns.teacher: got '{tmp_path}'; must"
    assert f"{where} be a BERT: its config.json says qwen3" in said({"model_type": "qwen3"})
    wide = {"model_type": "bert", "hidden_size": 768, "vocab_size": 512}
    assert f"{where} have the row's hidden_size=128: its config.json says 768" in said(wide)
    assert f"{where} have the row's vocab_size=512" in said(wide | {"hidden_size": 128, "vocab_size": 30_522})


def test_an_encoder_is_no_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=bert_base"]) == 2
    assert "model: got 'bert_base'; must be a model that vLLM samples from: bert is for" in capsys.readouterr().err


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Any) -> None:
    for name, kind, size in (("one", "wordpiece", 120), ("two", "wordpiece", 110)):
        tokenizer_of(tmp_path / name, kind, vocab_size=size)
    check_teacher(tmp_path / "one", tmp_path / "one")
    with pytest.raises(UserError, match="must have the vocabulary of the text"):
        check_teacher(tmp_path / "one", tmp_path / "two")
