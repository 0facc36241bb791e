"""Pretraining on your own documents: text, cleaned -> tokenizer -> a fresh model of the sizes that `model=` names."""

from __future__ import annotations

from dataclasses import replace

from framework.config import RunConfig, fresh_model
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.clean import Clean
from framework.stages.documents import CollectDocuments, DocumentsConfig
from framework.stages.extend import before_extension, extensions
from framework.stages.pretrain import Pretrain
from framework.stages.text_plan import text_notes
from framework.stages.tokenizer import Tokenize, TrainTokenizer


def build(config: RunConfig) -> Graph:
    """Return the graph of the job."""
    if not isinstance(config.data, DocumentsConfig):
        raise UserError("data", type(config.data).__name__, "must be documents")
    if config.base is not None:
        raise UserError("base", str(config.base), f"must be left out: job {config.job.name} makes its own base model")
    stage, model = config.stage, fresh_model(config)
    pretrain = stage["pretrain"]
    graph = Graph()
    tokens = pretrain.batches.tokens(pretrain.steps)
    graph.notes |= text_notes(tokens, stage["clean"], config.cluster, "documents")
    documents = graph.add("documents", CollectDocuments(config.data)).out("text")
    text = graph.add("clean", Clean(stage["clean"]), text=documents).out("text")
    train_tokenizer = TrainTokenizer(stage["tokenizer"], model.max_position_embeddings, model.vocab_size)
    tokenizer = graph.add("tokenizer", train_tokenizer, text=text).out("tokenizer")
    shards = graph.add("tokenize", Tokenize(stage["tokenize"]), text=text, tokenizer=tokenizer).out("shards")
    start = Pretrain(replace(pretrain, extend=()), before_extension(model, pretrain))
    base = graph.add("pretrain", start, shards=shards, tokenizer=tokenizer).out("base")
    for name, phase in extensions(model, pretrain).items():
        base = graph.add(name, phase, base=base, shards=shards, tokenizer=tokenizer).out("base")
    return graph
