"""A reward model: your own preferences and a checkpoint -> that checkpoint with a scalar head, trained on them."""

from __future__ import annotations

from framework.config import RunConfig, given_base
from framework.errors import UserError
from framework.graph.fit import naming
from framework.graph.nodes import Graph
from framework.models.scalar_head import check_scalar_head
from framework.stages.preferences import CollectPreferences, EncodePreferences, PreferencesConfig
from framework.stages.reward_model import RewardModel


def build(config: RunConfig) -> Graph:
    """Return the graph of the job; reads every line of the preferences."""
    if not isinstance(config.data, PreferencesConfig):
        raise UserError("data", type(config.data).__name__, "must be preferences")
    base, model = given_base(config)
    check_scalar_head(model.model_type)
    settings = config.stage["reward_model"]
    stage = RewardModel(settings, model, config.data.count_train(settings.kind))
    with naming("stage.reward_model", settings):
        settings.schedule(stage.steps)
    config.data.check(settings.kind, base.path, config.template)
    graph = Graph()
    collect = CollectPreferences(config.data, settings.kind)
    preferences = graph.add("preferences", collect).out("preferences")
    encode = EncodePreferences(stage.max_tokens, settings.engine.token_budget, settings.kind, config.template)
    encoded = graph.add("encode", encode, base=base, preferences=preferences)
    graph.add("reward_model", stage, base=base, shards=encoded.out("shards"), tokenizer=encoded.out("tokenizer"))
    return graph
