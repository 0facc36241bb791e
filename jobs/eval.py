"""Evaluation of your own model on held-out prompts."""

from __future__ import annotations

from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.fit import fit_sampler
from framework.stages.prompts import PreparePrompts, PromptsConfig


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads the prompts."""
    if not isinstance(config.data, PromptsConfig):
        raise UserError("data", type(config.data).__name__, "must be prompts")
    base, model = given_base(config)
    for split in config.data.read():
        config.reward.check_prompts(split)
    graph = Graph()
    prompts = graph.add("prompts", PreparePrompts(config.data), base=base).out("prompts")
    evaluate = Evaluate(config.stage["evaluate"], "base", fit_sampler(config.engine.rollout, model), config.reward)
    graph.add("eval", evaluate, checkpoint=base, prompts=prompts)
    return graph
