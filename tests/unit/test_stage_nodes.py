"""A stage's settings stand in its own node; what stages have in common is said once and reaches each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework.config import build_graph, compose, setting_keys
from framework.errors import UserError
from framework.graph.nodes import Graph
from framework.graph.store import Store
from framework.objectives.dapo import Dapo
from framework.objectives.grpo import Grpo
from framework.objectives.ppo import Ppo

CONF = Path(__file__).parent / "conf"
TWO = ("job=two_rl", "plugins=[tests.unit]")


def two(*overrides: str) -> Any:
    return compose([*TWO, *overrides], CONF)


def node_keys(graph: Graph, directory: Path) -> dict[str, str]:
    """Node -> key of its settings alone: inputs are left out."""
    return {node.name: Store(directory).key(node, {}, 0) for node in graph.order()}


@pytest.mark.parametrize(
    "setting",
    ["algorithm.clip_high=10", "reward.components.format.weight=2", "engine.learner.schedule.lr=1e-5",
     "engine.rollout.max_num_seqs=7", "temperature=0.7", "group_size=8"],
)  # fmt: skip
def test_a_setting_of_one_stage_changes_that_stage_alone(setting: str, tmp_path: Path) -> None:
    before, after = (
        node_keys(build_graph(two()), tmp_path),
        node_keys(build_graph(two(f"stage.dev2.{setting}")), tmp_path),
    )
    assert {name for name in before if before[name] != after[name]} == {"dev2"}


def test_what_is_common_reaches_every_stage_that_does_not_say_it_itself() -> None:
    stages = two("algorithm.kl_coef=0.5", "engine.learner.schedule.lr=1e-5", "rl.group_size=4").stage
    assert [stages[name].algorithm.kl_coef for name in ("r1_zero", "dev2")] == [0.5, 0.5]
    assert [stages[name].algorithm.clip_high for name in ("r1_zero", "dev2")] == [0.2, 9.0]  # the job's yaml
    assert [stages[name].engine.learner.schedule.lr for name in ("r1_zero", "dev2")] == [1e-5, 1e-5]
    assert [stages[name].group_size for name in ("r1_zero", "dev2")] == [4, 4]
    assert two("rl.group_size=4", "stage.dev2.group_size=2").stage["dev2"].group_size == 2


def test_a_job_chooses_the_algorithm_of_a_stage_and_so_does_the_command_line() -> None:
    whole = two("stage.r1_zero.algorithm={_target_: framework.objectives.dapo.Dapo, clip_high: 0.3}").stage
    assert whole["r1_zero"].algorithm == Dapo(clip_high=0.3)  # nothing of the common one is in it
    assert type(whole["dev2"].algorithm) is Grpo
    named = two("stage.dev2.algorithm=dapo", "stage.dev2.reward=dapo").stage
    assert named["dev2"].algorithm == Dapo()
    assert set(named["dev2"].reward.components) == {"accuracy", "overlong"}
    assert (named["r1_zero"].algorithm, set(named["r1_zero"].reward.components)) == (Grpo(), {"accuracy", "format"})
    both = two("algorithm=gspo").stage
    assert [type(both[name].algorithm).__name__ for name in ("r1_zero", "dev2")] == ["Gspo", "Gspo"]
    assert [both[name].minibatches_per_rollout for name in ("r1_zero", "dev2")] == [4, 4]
    beneath = two("stage.dev2.algorithm=dapo", "stage.dev2.algorithm.clip_high=0.5").stage
    assert (type(beneath["dev2"].algorithm), beneath["dev2"].algorithm.clip_high) == (Dapo, 0.5)
    by_the_job = compose(["job=rlhf", "stage.rlhf.algorithm.kl_target=1.5"]).stage["rlhf"].algorithm
    assert (type(by_the_job), by_the_job.kl_target) == (Ppo, 1.5)
    with pytest.raises(
        UserError, match=r"stage\.rlhf\.algorithm\.kl_targt: got 1\.5; unknown key; did you mean 'kl_target'"
    ):
        compose(["job=rlhf", "stage.rlhf.algorithm.kl_targt=1.5"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stage.dev2.algorithm.clip_hihg=1", r"stage\.dev2\.algorithm\.clip_hihg: got 1; unknown key; did you mean"),
        ("stage.dev2.algorithm.clip_high=-1", r"stage\.dev2\.algorithm\.clip_high: got -1; must be at least 0"),
        ("stage.dev3.steps=1", r"stage\.dev3: got .*; unknown; did you mean 'dev2'"),
        ("stage.dev2.algorithm=dappo", r"algorithm: got 'dappo'; did you mean 'dapo'"),
        ("stage.dev2.group_size=1", r"stage\.dev2\.group_size: got 1; must be at least 2: the group is the baseline"),
        ("rl.group_sise=1", r"rl\.group_sise: got 1; unknown key; did you mean 'group_size'"),
        ("stage.dev2.max_tokens=300", r"stage\.dev2\.max_tokens: got 300; must leave room"),
        ("stage.dev2.engine.learner.ep_size=2", r"stage\.dev2\.engine\.learner\.ep_size: got 2; must divide"),
        ("engine.learner.ep_size=2", r"^engine\.learner\.ep_size: got 2; must divide"),
        ("stage.dev2.algorithm.reference_reset_steps=3", r"stage\.dev2\.algorithm\.reference_reset_steps: got 3"),
    ],
)
def test_errors_name_the_node_and_the_key_as_it_was_written(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        two(override)


def test_keys_lists_a_stage_with_all_that_it_takes_over() -> None:
    shown = {key.name: key for key in setting_keys(["job=r1_zero", "algorithm.kl_coef=0.25"])}
    assert shown["stage.grpo.algorithm.kl_coef"].value == "0.25"
    assert shown["stage.grpo.engine.learner.schedule.lr"].value == "0.0002"
    assert shown["stage.grpo.engine.rollout.dtype"].value == "float32"  # fitted to a machine without GPUs
    assert "computed if not given" in shown["stage.grpo.engine.rollout.dtype"].doc
