"""Supervised fine-tuning: your own conversations and a checkpoint -> that checkpoint, tuned."""

from __future__ import annotations

from framework.artifacts import Checkpoint, read_json
from framework.config import RunConfig
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.models.spec import hf_config
from framework.stages.chats import ChatsConfig, CollectChats, EncodeChats
from framework.stages.sft import Sft


def build(config: RunConfig) -> Graph:
    """Return the graph of the fine-tuning job; reads every line of the conversations."""
    if not isinstance(config.data, ChatsConfig):
        raise UserError("data", type(config.data).__name__, "must be chats")
    if config.base is None:
        raise UserError("base", None, "must name the checkpoint directory to start from")
    base, model, tuning = Checkpoint(config.base.absolute()), config.model, config.stage["sft"]
    file, expected = base.path / "config.json", hf_config(model)
    for key, found in read_json(file).items():
        if key in ("model_type", "hidden_size", "num_hidden_layers") and found != getattr(expected, key):
            raise UserError("model", model.name, f"has {key}={getattr(expected, key)}, but {file} says {found}")
    experts = model.n_routed_experts if model.num_moe_layers else 0
    config.engine.learner.check_topology(tuning.check_workers(config.cluster), experts, "engine.learner")
    sft = Sft(tuning, config.engine.learner, model, config.data.count_train())
    tuning.schedule(sft.steps)
    graph = Graph()
    chats = graph.add("chats", CollectChats(config.data)).out("chats")
    encode = graph.add("encode", EncodeChats(config.data.template, sft.max_tokens), base=base, chats=chats)
    graph.add("sft", sft, base=base, shards=encode.out("shards"), tokenizer=encode.out("tokenizer"))
    return graph
