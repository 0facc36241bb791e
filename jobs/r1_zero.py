"""R1-Zero: text and prompts -> tokenizer -> V3-Base -> GRPO with verifiable rewards -> R1-Zero, both evaluated."""

from __future__ import annotations

from framework.config import RunConfig
from framework.graph.nodes import Graph
from framework.stages.collect import Collect
from framework.stages.evaluate import Evaluate
from framework.stages.grpo import Grpo
from framework.stages.pretrain import Pretrain
from framework.stages.tokenizer import Tokenize, TrainTokenizer


def build(config: RunConfig) -> Graph:
    """Return the graph of the R1-Zero job."""
    stage, model = config.stage, config.model
    graph = Graph()
    collect = graph.add("collect", Collect(config.data))
    text, prompts = collect.out("text"), collect.out("prompts")
    trained = graph.add("tokenizer", TrainTokenizer(stage["tokenizer"], model.max_position_embeddings), text=text)
    tokenizer = trained.out("tokenizer")
    shards = graph.add("tokenize", Tokenize(), text=text, tokenizer=tokenizer).out("shards")
    base = graph.add("pretrain", Pretrain(stage["pretrain"], model), shards=shards, tokenizer=tokenizer).out("base")
    rollout, rewards = config.engine.rollout, config.reward
    graph.add("eval_base", Evaluate(stage["evaluate"], "base", rollout, rewards), checkpoint=base, prompts=prompts)
    grpo = Grpo(stage["grpo"], config.algorithm, rewards, rollout, config.engine.learner, model)
    policy = graph.add("grpo", grpo, base=base, prompts=prompts).out("policy")
    final = Evaluate(stage["evaluate"], "r1_zero", rollout, rewards)
    graph.add("eval_r1_zero", final, checkpoint=policy, prompts=prompts)
    return graph
