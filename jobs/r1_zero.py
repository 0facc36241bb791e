"""R1-Zero: prompts, cleaned text -> tokenizer -> V3-Base -> GRPO with verifiable rewards -> R1-Zero, both evaluated."""

from __future__ import annotations

from framework.config import RunConfig, fresh_model
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.stages.evaluate import Evaluate
from framework.stages.grpo import Grpo
from jobs.base_model import add_base_model


def build(config: RunConfig) -> Graph:
    """Return the graph of the R1-Zero job; reads the prompts that are given."""
    graph, rl, evaluating = Graph(), config.stage["grpo"], config.stage["evaluate"]
    if rl.rollouts_from is not None:
        allowed = "is of job=grpo: this one makes its own base first"
        raise UserError("stage.grpo.rollouts_from", str(rl.rollouts_from), allowed)
    start = add_base_model(graph, config, "pretrain", rl, evaluating)
    prompts, template = start.prompts, start.template
    graph.add("eval_base", Evaluate(evaluating, "base", template), checkpoint=start.base, prompts=prompts)
    grpo = Grpo(rl, fresh_model(config), template, evaluating if rl.evaluate_every else None)
    policy = graph.add("grpo", grpo, base=start.base, prompts=prompts).out("policy")
    graph.add("eval_r1_zero", Evaluate(evaluating, "r1_zero", template), checkpoint=policy, prompts=prompts)
    return graph
