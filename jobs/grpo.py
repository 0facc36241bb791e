"""GRPO on your own model and prompts: base evaluated -> GRPO -> evaluated again. Or half of it, by saved rollouts."""

from __future__ import annotations

from dataclasses import replace

from framework.artifacts import Checkpoint, RewardCheckpoint
from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.found import find_run, newest_of
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.grpo import Grpo
from framework.stages.grpo_roles import check_critic, find_rollouts, usable_rollouts
from framework.stages.prompts import PreparePrompts, PromptsConfig, check_prompts


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads the prompts, or the groups that are given instead."""
    base, model = given_base(config)
    rl, evaluating = config.stage["grpo"], config.stage["evaluate"]
    if rl.critic is not None and (run := find_run(str(rl.critic), config.runs_dir)) is not None:
        rl = replace(rl, critic=newest_of(run, kind=RewardCheckpoint))
    grpo = Grpo(rl, model, evaluate=evaluating if rl.evaluate_every else None)
    if grpo.given_critic is not None:
        check_critic(grpo.given_critic, base.path, grpo.rollout.max_model_len)
    graph = Graph()
    if rl.rollouts_from is not None:  # no sampler starts, so nothing is evaluated either
        rollouts = find_rollouts(rl.rollouts_from)
        usable_rollouts(rollouts, base.path, rl, rl.algorithm, rl.engine.learner, model)
        graph.add("grpo", grpo, base=base, rollouts=rollouts)
        return graph
    prepare = _prepare(config, base)
    prompts = graph.add("prompts", prepare, base=base).out("prompts")
    if rl.sample_only:
        graph.add("grpo", grpo, base=base, prompts=prompts)
        return graph
    graph.add("eval_base", Evaluate(evaluating, "base"), checkpoint=base, prompts=prompts)
    policy = graph.add("grpo", grpo, base=base, prompts=prompts).out("policy")
    graph.add("eval_grpo", Evaluate(evaluating, "grpo"), checkpoint=policy, prompts=prompts)
    return graph


def _prepare(config: RunConfig, base: Checkpoint) -> PreparePrompts:
    """Read the prompts and put some into the template; raises UserError for what the run could not use."""
    if not isinstance(config.data, PromptsConfig):
        raise UserError("data", type(config.data).__name__, "must be prompts")
    rl = config.stage["grpo"]
    for split in config.data.read():
        rl.reward.check_prompts(split)
        check_prompts(base.path, split, config.template, rl.engine.rollout.max_model_len, rl.longest)
    return PreparePrompts(config.data, config.template, rl.reward)
