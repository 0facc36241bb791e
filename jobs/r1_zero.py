"""R1-Zero: prompts, cleaned text -> tokenizer -> V3-Base -> GRPO with verifiable rewards -> R1-Zero, both evaluated."""

from __future__ import annotations

from dataclasses import replace

from framework.config import RunConfig, fresh_model
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.clean import Clean
from framework.stages.collect import Collect, CollectConfig, check_given_prompts
from framework.stages.evaluate import Evaluate
from framework.stages.extend import before_extension, extensions
from framework.stages.grpo import Grpo
from framework.stages.pretrain import Pretrain
from framework.stages.tokenizer import Tokenize, TrainTokenizer


def build(config: RunConfig) -> Graph:
    """Return the graph of the R1-Zero job; reads the prompts that are given."""
    if not isinstance(config.data, CollectConfig):
        raise UserError("data", type(config.data).__name__, "must be reasoning_gym")
    stage, model = config.stage, fresh_model(config)
    pretrain, rl, evaluating = stage["pretrain"], stage["grpo"], stage["evaluate"]
    if rl.rollouts_from is not None:
        allowed = "is of job=grpo: this one makes its own base first"
        raise UserError("stage.grpo.rollouts_from", str(rl.rollouts_from), allowed)
    rooms = ((rl.engine.rollout.max_model_len, rl.longest), (evaluating.engine.max_model_len, evaluating.max_tokens))
    context, max_tokens = min(rooms, key=lambda room: room[0] - room[1])  # where a prompt may be shortest
    check_given_prompts(config.data, rl.reward, stage["tokenizer"], context, max_tokens)
    template = config.template if config.template.name else replace(config.template, name="r1_zero")
    graph = Graph()
    collect = graph.add("collect", Collect(config.data, rl.reward))
    prompts = collect.out("prompts")
    text = graph.add("clean", Clean(stage["clean"]), text=collect.out("text"), prompts=prompts).out("text")
    train_tokenizer = TrainTokenizer(stage["tokenizer"], model.max_position_embeddings, model.vocab_size)
    tokenizer = graph.add("tokenizer", train_tokenizer, text=text).out("tokenizer")
    tokenize = Tokenize(stage["tokenize"], context, max_tokens, template)
    shards = graph.add("tokenize", tokenize, text=text, tokenizer=tokenizer, prompts=prompts).out("shards")
    start = Pretrain(replace(pretrain, extend=()), before_extension(model, pretrain))
    base = graph.add("pretrain", start, shards=shards, tokenizer=tokenizer).out("base")
    for name, phase in extensions(model, pretrain).items():
        base = graph.add(name, phase, base=base, shards=shards, tokenizer=tokenizer).out("base")
    graph.add("eval_base", Evaluate(evaluating, "base", template), checkpoint=base, prompts=prompts)
    grpo = Grpo(rl, model, template, evaluating if rl.evaluate_every else None)
    policy = graph.add("grpo", grpo, base=base, prompts=prompts).out("policy")
    graph.add("eval_r1_zero", Evaluate(evaluating, "r1_zero", template), checkpoint=policy, prompts=prompts)
    return graph
