"""GRPO on your own model and prompts: base evaluated -> GRPO -> evaluated again. Or half of it, by saved rollouts."""

from __future__ import annotations

from framework.artifacts import Checkpoint
from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.fit import fit_learner, fit_sampler
from framework.stages.grpo import Grpo
from framework.stages.grpo_roles import find_rollouts, usable_rollouts
from framework.stages.prompts import PreparePrompts, PromptsConfig, check_prompts


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads the prompts, or the groups that are given instead."""
    base, model = given_base(config)
    stage, rewards, cluster = config.stage, config.reward, config.cluster
    rollout = fit_sampler(config.engine.rollout, model)
    learner = fit_learner(config.engine.learner, model, cluster, cluster.learner_workers, rollout.max_model_len)
    watched = stage["evaluate"] if stage["grpo"].evaluate_every else None
    grpo = Grpo(stage["grpo"], config.algorithm, rewards, rollout, learner, model, evaluate=watched)
    graph = Graph()
    if stage["grpo"].rollouts_from is not None:  # no sampler starts, so nothing is evaluated either
        rollouts = find_rollouts(stage["grpo"].rollouts_from)
        usable_rollouts(rollouts, base.path, stage["grpo"], config.algorithm, learner, model)
        graph.add("grpo", grpo, base=base, rollouts=rollouts)
        return graph
    prepare = _prepare(config, base, rollout.max_model_len)
    prompts = graph.add("prompts", prepare, base=base).out("prompts")
    if stage["grpo"].sample_only:
        graph.add("grpo", grpo, base=base, prompts=prompts)
        return graph
    graph.add("eval_base", Evaluate(stage["evaluate"], "base", rollout, rewards), checkpoint=base, prompts=prompts)
    policy = graph.add("grpo", grpo, base=base, prompts=prompts).out("policy")
    graph.add("eval_grpo", Evaluate(stage["evaluate"], "grpo", rollout, rewards), checkpoint=policy, prompts=prompts)
    return graph


def _prepare(config: RunConfig, base: Checkpoint, context: int) -> PreparePrompts:
    """Read the prompts and put some into the template; raises UserError for what the run could not use."""
    if not isinstance(config.data, PromptsConfig):
        raise UserError("data", type(config.data).__name__, "must be prompts")
    for split in config.data.read():
        config.reward.check_prompts(split)
        check_prompts(base.path, split, config.template, context, config.stage["grpo"].longest)
    return PreparePrompts(config.data, config.template, config.reward)
