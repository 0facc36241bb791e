"""Supervised fine-tuning: your own conversations and a checkpoint -> that checkpoint, tuned."""

from __future__ import annotations

from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.fit import naming
from framework.graph.nodes import Graph
from framework.stages.chats import ChatsConfig, CollectChats, EncodeChats
from framework.stages.sft import Sft


def build(config: RunConfig) -> Graph:
    """Return the graph of the fine-tuning job; reads every line of the conversations."""
    if not isinstance(config.data, ChatsConfig):
        raise UserError("data", type(config.data).__name__, "must be chats")
    base, model = given_base(config)
    sft = Sft(config.stage["sft"], model, config.data.count_train())
    with naming("stage.sft", sft.config):
        sft.config.schedule(sft.steps)
    config.data.check(base.path, config.template)
    graph = Graph()
    chats = graph.add("chats", CollectChats(config.data)).out("chats")
    encode = graph.add("encode", EncodeChats(sft.max_tokens, config.template), base=base, chats=chats)
    graph.add("sft", sft, base=base, shards=encode.out("shards"), tokenizer=encode.out("tokenizer"))
    return graph
