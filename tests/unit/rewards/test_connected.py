from __future__ import annotations

from pathlib import Path

import pytest

from framework.errors import UserError
from framework.rewards.base import RewardConfig
from framework.rewards.connected import rule_names, with_checkpoints
from framework.rewards.format import Format
from framework.rewards.reward_model import PreferenceModel

CONFIG = RewardConfig({"format": Format(), "helpful": PreferenceModel(), "safety": PreferenceModel(sees="all")})


def test_models_are_connected_by_name_and_rules_are_the_rest() -> None:
    connected = with_checkpoints(CONFIG, {"helpful": Path("model")}).components
    assert connected["helpful"] == PreferenceModel(checkpoint=Path("model"))
    assert connected["safety"] == CONFIG.components["safety"]
    assert rule_names(CONFIG) == ("format",)


@pytest.mark.parametrize("name", ["format", "helpfull"])
def test_a_model_is_connected_to_no_other_reward(name: str) -> None:
    with pytest.raises(UserError, match=rf"reward\.components\.{name}: got '.*'; a reward model is connected"):
        with_checkpoints(CONFIG, {name: Path("model")})
