"""The beginning that recipes share: prompts and cleaned text -> tokenizer -> a pretrained base model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from framework.config import RunConfig, fresh_model
from framework.data.chat_template import TemplateConfig
from framework.errors import UserError
from framework.graph.nodes import Graph, OutputRef
from framework.stages.clean import Clean
from framework.stages.collect import Collect, CollectConfig, check_given_prompts
from framework.stages.evaluate import EvaluateConfig
from framework.stages.extend import before_extension, extensions
from framework.stages.grpo import GrpoConfig
from framework.stages.pretrain import Pretrain
from framework.stages.text_plan import text_notes
from framework.stages.tokenizer import Tokenize, TrainTokenizer


@dataclass(frozen=True)
class BaseModel:
    """What later nodes of the graph start from."""

    base: OutputRef
    prompts: OutputRef
    text: OutputRef
    template: TemplateConfig  # of the prompts: R1-Zero's, unless another is named


def add_base_model(graph: Graph, config: RunConfig, name: str, rl: GrpoConfig, evaluating: EvaluateConfig) -> BaseModel:
    """Add the nodes; node and settings of the pretraining are called `name`. Reads the prompts that are given.

    Prompts must suit what comes behind: `rl`'s rewards, and the room that it and `evaluating` leave them.
    """
    if not isinstance(config.data, CollectConfig):
        raise UserError("data", type(config.data).__name__, "must be reasoning_gym")
    stage, model = config.stage, fresh_model(config)
    rooms = ((rl.engine.rollout.max_model_len, rl.longest), (evaluating.engine.max_model_len, evaluating.max_tokens))
    context, max_tokens = min(rooms, key=lambda room: room[0] - room[1])  # where a prompt may be shortest
    check_given_prompts(config.data, rl.reward, stage["tokenizer"], context, max_tokens)
    template = config.template if config.template.name else replace(config.template, name="r1_zero")
    tokens = stage[name].batches.tokens(stage[name].steps)
    graph.notes |= text_notes(tokens, stage["clean"], config.cluster, "collect")
    collect = graph.add("collect", Collect(config.data, rl.reward))
    prompts = collect.out("prompts")
    text = graph.add("clean", Clean(stage["clean"]), text=collect.out("text"), prompts=prompts).out("text")
    train_tokenizer = TrainTokenizer(stage["tokenizer"], model.max_position_embeddings, model.vocab_size)
    tokenizer = graph.add("tokenizer", train_tokenizer, text=text).out("tokenizer")
    tokenize = Tokenize(stage["tokenize"], context, max_tokens, template)
    shards = graph.add("tokenize", tokenize, text=text, tokenizer=tokenizer, prompts=prompts).out("shards")
    start = Pretrain(replace(stage[name], extend=()), before_extension(model, stage[name]))
    base = graph.add(name, start, shards=shards, tokenizer=tokenizer).out("base")
    for phase, settings in extensions(model, stage[name]).items():
        base = graph.add(phase, settings, base=base, shards=shards, tokenizer=tokenizer).out("base")
    return BaseModel(base, prompts, text, template)
