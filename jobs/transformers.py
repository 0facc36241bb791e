"""The table of transformers: one text -> tokenizers -> each model, pretrained by its own objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from framework.artifacts import Checkpoint, read_json
from framework.config import RunConfig
from framework.data.text_tokenizers import TextTokenizerConfig
from framework.errors import UserError, did_you_mean
from framework.graph.nodes import Edge, Graph, OutputRef
from framework.roles.text_data import Coded, Distilled
from framework.stages.assess import Assess
from framework.stages.clean import Clean
from framework.stages.domains import CollectDomains, DomainsConfig
from framework.stages.text_tokens import TokenizeSentences, TrainTextTokenizer
from framework.stages.transformer import PretrainTransformer, TransformerConfig


def build(config: RunConfig) -> Graph:
    """Return the graph: a row for each stage of `TransformerConfig`, or with `until` a row's the way to it alone."""
    if not isinstance(config.data, DomainsConfig):
        raise UserError("data", type(config.data).__name__, "must be domains")
    rows = _rows(config)
    graph = Graph()
    collected = graph.add("collect", CollectDomains(config.data)).out("text")
    text = graph.add("clean", Clean(config.stage["clean"]), text=collected).out("text")
    tokens = {}
    for name in dict.fromkeys(row.tokenizer for row in rows.values()):
        users = {key: row for key, row in rows.items() if row.tokenizer == name}
        settings = _tokenizer(config, name, users)
        longest = min(row.model.max_position_embeddings for row in users.values())
        tokenizer = graph.add(name, TrainTextTokenizer(settings, longest), text=text).out("tokenizer")
        shards = graph.add(f"{name}_text", TokenizeSentences(), text=text, tokenizer=tokenizer).out("shards")
        tokens[name] = {"shards": shards, "tokenizer": tokenizer}
    for name, row in rows.items():
        edges: dict[str, Edge] = dict(tokens[row.tokenizer])
        if isinstance(row.learns, Distilled):
            edges["teacher"] = _teacher(config, name, row, rows)
        if isinstance(row.learns, Coded):
            _check_codes(f"stage.{name}.learns.codes", row.learns.codes, config.data.domains, "the text has")
            if not (with_codes := _tokenizers(config))[row.tokenizer].codes:
                names = ", ".join(key for key, found in with_codes.items() if found.codes)
                raise UserError(f"stage.{name}.tokenizer", row.tokenizer, f"must have control codes: {names}")
            known = row.learns.codes or config.data.domains
            _check_codes("stage.assess.writing.codes", config.stage["assess"].writing.codes, known, f"{name} learns")
        base = graph.add(name, PretrainTransformer(row), **edges).out("base")
        given = {key: edge for key, edge in edges.items() if key != "tokenizer"}
        graph.add(f"assess_{name}", Assess(config.stage["assess"], row, name), checkpoint=base, text=text, **given)
    return graph


def _rows(config: RunConfig) -> dict[str, TransformerConfig]:
    """All, or the one that `until` ends in, with its teacher."""
    rows = {name: found for name, found in config.stage.items() if isinstance(found, TransformerConfig)}
    last = config.until.removeprefix("assess_")
    if last not in rows:
        return rows
    teacher = rows[last].learns.teacher if isinstance(rows[last].learns, Distilled) else ""
    return {name: row for name, row in rows.items() if name in (last, teacher)}


def _check_codes(where: str, codes: Sequence[str], known: Sequence[str], who: str) -> None:
    for code in codes:
        if code not in known:
            raise UserError(where, code, f"{did_you_mean(code, known)}{who} {', '.join(known)}")


def _teacher(config: RunConfig, name: str, row: TransformerConfig, rows: dict[str, TransformerConfig]) -> Edge:
    """Another row's model, or a checkpoint directory; raises UserError for one of another tokenizer."""
    teacher, where = row.learns.teacher, f"stage.{name}.learns.teacher"
    if teacher in rows:
        if rows[teacher].tokenizer != row.tokenizer:
            allowed = f"must have the vocabulary of {row.tokenizer}: this row's is {rows[teacher].tokenizer}"
            raise UserError(where, teacher, allowed)
        return OutputRef(teacher, "base", Checkpoint)
    if not Path(teacher).is_dir():
        others = [key for key, found in config.stage.items() if isinstance(found, TransformerConfig) and key != name]
        allowed = f"{did_you_mean(teacher, others)}must be a row ({', '.join(others)}) or a checkpoint directory"
        raise UserError(where, teacher, allowed)
    _check_teacher(where, Path(teacher), row)
    return Checkpoint(Path(teacher).absolute())


def _check_teacher(where: str, directory: Path, row: TransformerConfig) -> None:
    """Raise UserError unless a directory holds a BERT of the row's width and as many tokens; the run compares those."""
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(where, str(directory), "must hold a BERT checkpoint: there is no config.json")
    sizes = read_json(file)
    if sizes.get("model_type") != "bert":
        raise UserError(where, str(directory), f"must be a BERT: its config.json says {sizes.get('model_type')}")
    for key in ("hidden_size", "vocab_size"):
        if sizes.get(key) != getattr(row.model, key):
            allowed = f"must have the row's {key}={getattr(row.model, key)}: its config.json says {sizes.get(key)}"
            raise UserError(where, str(directory), allowed)


def _tokenizers(config: RunConfig) -> dict[str, TextTokenizerConfig]:
    return {key: found for key, found in config.stage.items() if isinstance(found, TextTokenizerConfig)}


def _tokenizer(config: RunConfig, name: str, users: dict[str, TransformerConfig]) -> TextTokenizerConfig:
    """The settings of a tokenizer; raises UserError for a name that is none, or one that a model cannot hold."""
    known = _tokenizers(config)
    if name not in known:
        allowed = f"{did_you_mean(name, known)}must be a stage that trains a tokenizer: {', '.join(known)}"
        raise UserError(f"stage.{next(iter(users))}.tokenizer", name, allowed)
    for key, row in users.items():
        if known[name].vocab_size > row.model.vocab_size:
            allowed = f"must be at most stage.{key}.model.vocab_size={row.model.vocab_size}"
            raise UserError(f"stage.{name}.vocab_size", known[name].vocab_size, allowed)
    return known[name]
