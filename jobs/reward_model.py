"""A reward model: your own preferences and a checkpoint -> that checkpoint with a scalar head, trained on them."""

from __future__ import annotations

from collections.abc import Callable

from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.fit import naming
from framework.graph.nodes import Graph
from framework.models.scalar_head import check_scalar_head
from framework.stages.judged_training import JudgedTraining
from framework.stages.preferences import CollectPreferences, EncodePreferences, PreferencesConfig
from framework.stages.reward_model import RewardModel


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads every line of the preferences."""
    _, model = given_base(config)
    check_scalar_head(model.model_type)
    return add_judged(config, "reward_model", lambda prompts: RewardModel(config.stage["reward_model"], model, prompts))


def add_judged(config: RunConfig, name: str, stage_of: Callable[[int], JudgedTraining]) -> Graph:
    """Return the graph that reads, splits and encodes preferences for a stage `name`, given how many prompts it has."""
    if not isinstance(config.data, PreferencesConfig):
        raise UserError("data", type(config.data).__name__, "must be preferences")
    base, _ = given_base(config)
    settings = config.stage[name]
    stage = stage_of(config.data.count_train(settings.kind))
    with naming(f"stage.{name}", settings):
        settings.schedule(stage.steps)
    config.data.check(settings.kind, base.path, config.template)
    graph = Graph()
    collect = CollectPreferences(config.data, settings.kind)
    preferences = graph.add("preferences", collect).out("preferences")
    encode = EncodePreferences(stage.max_tokens, settings.engine.token_budget, settings.kind, config.template)
    encoded = graph.add("encode", encode, base=base, preferences=preferences)
    graph.add(name, stage, base=base, shards=encoded.out("shards"), tokenizer=encoded.out("tokenizer"))
    return graph
