"""Reward models that a job's graph connects to the reward components of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from framework.errors import UserError
from framework.rewards.base import RewardConfig
from framework.rewards.reward_model import PreferenceModel


def with_checkpoints(config: RewardConfig, found: Mapping[str, Path]) -> RewardConfig:
    """Return the rewards, each component named in `found` with that reward model.

    Raises UserError for one that is not configured, or is no PreferenceModel.
    """
    components = dict(config.components)
    for name, checkpoint in found.items():
        reward = components.get(name)
        if not isinstance(reward, PreferenceModel):
            allowed = f"a reward model is connected to it, so it must be a {PreferenceModel.__name__}"
            raise UserError(f"reward.components.{name}", type(reward).__name__, allowed)
        components[name] = replace(reward, checkpoint=checkpoint)
    return replace(config, components=components)


def lacking_models(config: RewardConfig, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of these components that are reward models for which no checkpoint is given."""
    found = ((name, config.components.get(name)) for name in names)
    return tuple(name for name, reward in found if isinstance(reward, PreferenceModel) and reward.checkpoint is None)


def rule_names(config: RewardConfig) -> tuple[str, ...]:
    """Return the components that are no reward models."""
    return tuple(name for name, reward in config.components.items() if not isinstance(reward, PreferenceModel))
