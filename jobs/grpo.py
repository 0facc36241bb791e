"""GRPO on your own model and prompts: base evaluated -> GRPO -> evaluated again."""

from __future__ import annotations

from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.fit import fit_learner, fit_sampler
from framework.stages.grpo import Grpo
from framework.stages.prompts import PreparePrompts, PromptsConfig, check_prompts


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads the prompts."""
    if not isinstance(config.data, PromptsConfig):
        raise UserError("data", type(config.data).__name__, "must be prompts")
    base, model = given_base(config)
    stage, rewards, cluster = config.stage, config.reward, config.cluster
    rollout = fit_sampler(config.engine.rollout, model)
    for split in config.data.read():
        rewards.check_prompts(split)
        check_prompts(base.path, split, config.template, rollout.max_model_len, stage["grpo"].longest)
    learner = fit_learner(config.engine.learner, model, cluster, cluster.learner_workers, rollout.max_model_len)
    graph = Graph()
    prepare = PreparePrompts(config.data, config.template, rewards)
    prompts = graph.add("prompts", prepare, base=base).out("prompts")
    graph.add("eval_base", Evaluate(stage["evaluate"], "base", rollout, rewards), checkpoint=base, prompts=prompts)
    grpo = Grpo(stage["grpo"], config.algorithm, rewards, rollout, learner, model)
    policy = graph.add("grpo", grpo, base=base, prompts=prompts).out("policy")
    graph.add("eval_grpo", Evaluate(stage["evaluate"], "grpo", rollout, rewards), checkpoint=policy, prompts=prompts)
    return graph
