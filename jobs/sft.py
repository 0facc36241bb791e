"""Supervised fine-tuning: your own conversations and a checkpoint -> that checkpoint, tuned; evaluated by prompts."""

from __future__ import annotations

from framework.artifacts import Checkpoint
from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.fit import naming
from framework.graph.nodes import Graph
from framework.stages.chats import ChatsConfig, CollectChats, EncodeChats
from framework.stages.evaluate import Evaluate, EvaluateConfig
from framework.stages.prompts import PreparePrompts, PromptsConfig, check_prompts
from framework.stages.sft import Sft


def build(config: RunConfig) -> Graph:
    """Return the graph of the fine-tuning job; reads every line of the conversations, and the held-out prompts."""
    data = config.data
    if not isinstance(data, ChatsConfig):
        raise UserError("data", type(data).__name__, "must be chats")
    base, model = given_base(config)
    evaluating = None if data.prompts is None else config.stage["evaluate"]
    sft = Sft(config.stage["sft"], model, data.count_train(), evaluating)
    with naming("stage.sft", sft.config):
        sft.config.schedule(sft.steps)
    data.check(base.path, config.template)
    graph = Graph()
    inputs = {"base": base}
    if data.prompts is not None:
        prepare = _prepare(data.prompts, config, base, config.stage["evaluate"])
        inputs["prompts"] = graph.add("prompts", prepare, base=base).out("prompts")
        graph.add("eval_base", Evaluate(config.stage["evaluate"], "base"), checkpoint=base, prompts=inputs["prompts"])
    chats = graph.add("chats", CollectChats(data)).out("chats")
    encode = graph.add("encode", EncodeChats(sft.max_tokens, config.template), base=base, chats=chats)
    tuned = graph.add("sft", sft, **inputs, shards=encode.out("shards"), tokenizer=encode.out("tokenizer"))
    if data.prompts is not None:
        after = Evaluate(config.stage["evaluate"], "sft")
        graph.add("eval_sft", after, checkpoint=tuned.out("tuned"), prompts=inputs["prompts"])
    return graph


def _prepare(data: PromptsConfig, config: RunConfig, base: Checkpoint, evaluating: EvaluateConfig) -> PreparePrompts:
    """Read the prompts and put some into the template; raises UserError for what the run could not use."""
    _, heldout = data.read()
    evaluating.reward.check_prompts(heldout)
    check_prompts(base.path, heldout, config.template, evaluating.engine.max_model_len, evaluating.max_tokens)
    return PreparePrompts(data, config.template, evaluating.reward)
