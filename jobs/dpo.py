"""Tuning on preferences: your own chosen and rejected answers and a checkpoint -> that checkpoint, tuned (DPO)."""

from __future__ import annotations

from framework.config import RunConfig, given_base
from framework.graph.nodes import Graph
from framework.stages.dpo import PreferenceTuning
from jobs.reward_model import add_judged


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads every line of the preferences."""
    _, model = given_base(config)
    return add_judged(config, "dpo", lambda prompts: PreferenceTuning(config.stage["dpo"], model, prompts))
