from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from framework.algorithms.policy_loss import GrpoConfig

FOLDER = Path(__file__).parents[3] / "conf" / "algorithm"
DEFAULTS = asdict(GrpoConfig())


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "grpo_v32"])
def test_each_is_valid_and_states_only_what_differs(name: str) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert values.pop("_target_") == "framework.algorithms.policy_loss.GrpoConfig"
    config = asdict(GrpoConfig(**values))
    assert {key for key in config if config[key] != DEFAULTS[key]} == set(values)
