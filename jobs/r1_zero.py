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
    if stage["grpo"].rollouts_from is not None:
        allowed = "is of job=grpo: this one makes its own base first"
        raise UserError("stage.grpo.rollouts_from", str(stage["grpo"].rollouts_from), allowed)
    rollout, rewards = config.engine.rollout, config.reward
    max_tokens = max(stage["grpo"].longest, stage["evaluate"].max_tokens)
    check_given_prompts(config.data, rewards, stage["tokenizer"], rollout.max_model_len, max_tokens)
    pretrain, ranks = stage["pretrain"], config.cluster.learner_workers
    experts = model.n_routed_experts if model.num_moe_layers else 0
    config.cluster.check_gpus(rollout.tensor_parallel_size)
    config.engine.learner.check_topology(ranks, experts, "engine.learner")
    pretrain.engine.check_topology(pretrain.check_workers(config.cluster), experts, "stage.pretrain.engine")
    template = config.template if config.template.name else replace(config.template, name="r1_zero")
    graph = Graph()
    collect = graph.add("collect", Collect(config.data, rewards))
    prompts = collect.out("prompts")
    text = graph.add("clean", Clean(stage["clean"]), text=collect.out("text"), prompts=prompts).out("text")
    train_tokenizer = TrainTokenizer(stage["tokenizer"], model.max_position_embeddings, model.vocab_size)
    tokenizer = graph.add("tokenizer", train_tokenizer, text=text).out("tokenizer")
    tokenize = Tokenize(stage["tokenize"], rollout.max_model_len, max_tokens, template)
    shards = graph.add("tokenize", tokenize, text=text, tokenizer=tokenizer, prompts=prompts).out("shards")
    start = Pretrain(replace(pretrain, extend=()), before_extension(model, pretrain))
    base = graph.add("pretrain", start, shards=shards, tokenizer=tokenizer).out("base")
    for name, phase in extensions(model, pretrain).items():
        base = graph.add(name, phase, base=base, shards=shards, tokenizer=tokenizer).out("base")
    graph.add(
        "eval_base", Evaluate(stage["evaluate"], "base", rollout, rewards, template), checkpoint=base, prompts=prompts
    )
    watched = stage["evaluate"] if stage["grpo"].evaluate_every else None
    engines = rollout, config.engine.learner
    grpo = Grpo(stage["grpo"], config.algorithm, rewards, *engines, model, template, watched)
    policy = graph.add("grpo", grpo, base=base, prompts=prompts).out("policy")
    final = Evaluate(stage["evaluate"], "r1_zero", rollout, rewards, template)
    graph.add("eval_r1_zero", final, checkpoint=policy, prompts=prompts)
    return graph
