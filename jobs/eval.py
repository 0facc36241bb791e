"""Evaluation of your own model on held-out prompts."""

from __future__ import annotations

from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.fit import fit_sampler
from framework.stages.prompts import PreparePrompts, PromptsConfig, check_prompts


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads the prompts."""
    if not isinstance(config.data, PromptsConfig):
        raise UserError("data", type(config.data).__name__, "must be prompts")
    base, model = given_base(config)
    engine, evaluating = fit_sampler(config.engine.rollout, model), config.stage["evaluate"]
    for split in config.data.read():
        config.reward.check_prompts(split)
        check_prompts(base.path, split, config.template, engine.max_model_len, evaluating.max_tokens)
    graph = Graph()
    prepare = PreparePrompts(config.data, config.template, config.reward)
    prompts = graph.add("prompts", prepare, base=base).out("prompts")
    evaluate = Evaluate(evaluating, "base", engine, config.reward)
    graph.add("eval", evaluate, checkpoint=base, prompts=prompts)
    return graph
