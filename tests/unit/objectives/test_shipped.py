"""Each shipped algorithm against its paper's numbers, at a full size, with all that one choice of it brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from framework.config import build_graph, compose
from framework.errors import UserError
from framework.rewards.overlong import Overlong
from framework.types import Prompt, Response
from tests.fake_clients import response

FOLDER = Path(__file__).parents[3] / "conf" / "algorithm"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
FULL = ("model=qwen_32b", "cluster=h800_512")  # the model that DAPO trained
PROMPT = Prompt("p", "", "", "1", token_ids=(1,))

# name -> where -> value in the paper; what a paper does not say is not here
PAPERS: dict[str, dict[str, Any]] = {
    "grpo": {  # DeepSeek-R1 (2501.12948v2) section 2.1 and Nature, Methods
        "algorithm.kl_coef": 0.001, "algorithm.kl_estimator": "k3", "algorithm.advantage_std": True,
        "algorithm.reference_reset_steps": 400, "algorithm.average": "response", "algorithm.filter_on": None,
        "stage.grpo.prompts_per_step": 32, "stage.grpo.group_size": 16, "stage.grpo.minibatches_per_rollout": 16,
        "stage.grpo.temperature": 1.0, "stage.grpo.max_tokens": 32_768, "stage.grpo.steps": 10_400,
        "engine.learner.schedule.lr": 2e-6,  # Qwen-32B-Zero's
    },
    "grpo_v32": {  # DeepSeek-V3.2 section 3.1, eq. 5-9
        "algorithm.kl_estimator": "k3_unbiased", "algorithm.advantage_std": False, "algorithm.average": "response",
        "algorithm.old_logprobs": "sampler",
    },
    "dapo": {  # 2503.14476 section 4.1
        "algorithm.clip_low": 0.2, "algorithm.clip_high": 0.28, "algorithm.kl_coef": 0.0, "algorithm.std": True,
        "algorithm.average": "token", "algorithm.filter_on": "accuracy",
        "stage.grpo.prompts_per_batch": 512, "stage.grpo.group_size": 16, "stage.grpo.minibatches_per_rollout": 16,
        "stage.grpo.max_tokens": 20_480, "engine.learner.schedule.lr": 1e-6, "engine.learner.schedule.kind": "constant",
        "engine.learner.schedule.warmup_steps": 20 * 16,
    },
    "dr_grpo": {  # 2503.20783 section 3.2
        "algorithm.kl_coef": 0.0, "algorithm.std": False, "algorithm.average": "constant",
        "algorithm.constant_length": None,
    },
    "gspo": {  # 2507.18071 section 5.1
        "algorithm.clip_low": 3e-4, "algorithm.clip_high": 4e-4, "algorithm.std": True, "algorithm.average": "response",
        "stage.grpo.minibatches_per_rollout": 4,
    },
    "cispo": {  # 2506.13585 section 3
        "algorithm.kl_coef": 0.0, "algorithm.average": "token", "algorithm.filter_on": "accuracy",
        "stage.grpo.minibatches_per_rollout": 16, "engine.learner.beta1": 0.9, "engine.learner.beta2": 0.95,
        "engine.learner.eps": 1e-15,
    },
    "rloo": {  # 2402.14740
        "algorithm.kl_in_reward": True, "algorithm.reference_reset_steps": 0,
        "algorithm.kl_coef": 0.03, "algorithm.average": "sequence",
        "stage.grpo.minibatches_per_rollout": 1, "stage.grpo.group_size": 4,
    },
    "ppo": {  # InstructGPT (2203.02155) section 3.5, C.4
        "algorithm.kl_coef": 0.02, "algorithm.kl_target": None, "algorithm.clip_low": 0.2, "algorithm.clip_high": 0.2,
        "algorithm.gamma": 1.0, "algorithm.kl_in_reward": True, "algorithm.reference_reset_steps": 0,
        "stage.grpo.minibatches_per_rollout": 8, "stage.grpo.group_size": 1, "stage.grpo.critic_schedule.lr": 9e-6,
        "stage.grpo.temperature": 1.0,
    },
    "online_dpo": {  # 2402.04792: on-policy pairs, DPO's loss with its beta of 0.1
        "algorithm.kl_coef": 0.1, "algorithm.average": "sequence", "algorithm.reference_reset_steps": 0,
        "stage.grpo.minibatches_per_rollout": 1, "stage.grpo.group_size": 2,
    },
    "icepop": {  # 2510.18855
        "algorithm.icepop": (0.5, 5.0), "algorithm.old_logprobs": "learner", "algorithm.kl_coef": 0.0,
    },
}  # fmt: skip


def value_at(config: Any, where: str) -> Any:
    """A setting of the GRPO stage, which takes over what is said for all stages."""
    for name in f"stage.grpo.{where.removeprefix('stage.grpo.')}".split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def test_every_shipped_algorithm_is_held_against_a_paper() -> None:
    assert sorted(PAPERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_numbers_come_with_the_algorithm(name: str) -> None:
    config = compose([f"algorithm={name}", *FULL])
    assert {where: value_at(config, where) for where in PAPERS[name]} == PAPERS[name]
    build_graph(config)


@pytest.mark.parametrize("size", [(), FULL, ("model=v3_671b", "cluster=h200_256"), ("model=qwen_7b", "cluster=node8")])
def test_dapos_rewards_and_learning_rate_come_at_any_size(size: tuple[str, ...]) -> None:
    config = compose(["algorithm=dapo", *size])
    schedule = config.stage["grpo"].engine.learner.schedule  # type: ignore[union-attr]
    assert (schedule.lr, schedule.kind, schedule.warmup_steps) == (1e-6, "constant", 320)
    assert config.stage["grpo"].reward == compose(["reward=dapo"]).reward  # type: ignore[union-attr]
    own = compose(["algorithm=dapo", "engine.learner.schedule.lr=2e-4", *size]).stage["grpo"].engine.learner  # type: ignore[union-attr]
    assert own.schedule.lr == 2e-4  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_laptop_can_plan_each(name: str) -> None:
    build_graph(compose([f"algorithm={name}"]))
    if name not in ("dapo", "cispo"):
        assert compose([f"algorithm={name}"]).reward == compose([]).reward


@pytest.mark.parametrize("name", NAMES)
def test_each_states_only_what_differs(name: str) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    values = values.get("algorithm", values)
    config = compose([f"algorithm={name}"]).algorithm
    defaults = type(config)()
    assert f"{type(config).__module__}.{type(config).__name__}" == values.pop("_target_")
    assert {key for key in vars(config) if getattr(config, key) != getattr(defaults, key)} == set(values)


def test_dapos_rewards_are_one_and_minus_one_with_a_penalty_that_follows_the_limit() -> None:
    from framework.rewards.base import score_response

    for overrides, limit, buffer in ((FULL, 20_480, 4096), ((), 64, 12)):
        config = compose(["algorithm=dapo", *overrides])
        rewards = config.stage["grpo"].reward.at_limit(config.stage["grpo"].longest)  # type: ignore[union-attr]
        assert set(rewards.components) == {"accuracy", "overlong"}
        overlong = rewards.components["overlong"]
        assert (overlong.max_tokens, overlong.buffer_tokens) == (limit, buffer)

        def total(text: str, tokens: int, components: Any = rewards.components) -> float:
            prompt = Prompt("p", "1 + 1", "math", "2", token_ids=(1,))
            given = response([0] * tokens)
            given = Response(given.token_ids, given.logprobs, given.weight_versions, "stop", text)
            score = score_response(components, prompt, given)
            assert not score.error
            assert score.components["accuracy"] in (0.0, 1.0)  # what evaluation and the filter read
            return score.total

        right, wrong = "<answer>2</answer>", "<answer>3</answer>"
        assert (total(right, 10), total(wrong, 10)) == (1.0, -1.0)
        assert (total(right, limit), total(wrong, limit)) == (0.0, -2.0)
        assert total(right, limit - buffer // 2) == pytest.approx(0.5)


def test_limits_that_contradict_the_responses_are_refused_by_the_plan() -> None:
    for override, says in (
        (
            "++reward.components.overlong.max_tokens=20480",
            r"max_tokens of the overlong reward: got 20480; .*max_tokens=64",
        ),
        ("++reward.components.overlong.buffer_tokens=4096", r"buffer_tokens of the overlong reward: got 4096"),
    ):
        with pytest.raises(UserError, match=says):
            build_graph(compose(["algorithm=dapo", override]))
    with pytest.raises(UserError, match=r"algorithm\.constant_length: got 64; must be at least"):
        build_graph(compose(["algorithm=dr_grpo", "algorithm.constant_length=64", *FULL]))
    with pytest.raises(UserError, match=r"algorithm\.filter_on: got 'accuracy'"):
        build_graph(compose(["algorithm=dapo", "~reward.components.accuracy", "stage.evaluate.right_by=[overlong]"]))
    chosen = compose(["algorithm=dapo", "reward=rule"])  # what the user says goes before
    assert set(chosen.reward.components) == {"accuracy", "format"}  # type: ignore[union-attr]


def test_the_plan_says_what_of_v32_is_not_there() -> None:
    says = [compose([f"algorithm={name}"]).algorithm.notes() for name in ("grpo_v32", "grpo")]  # type: ignore[union-attr]
    assert "Keep Routing" in says[0][0]
    assert says[1] == ()


def test_overlong_without_a_run_is_the_papers() -> None:
    penalties = [Overlong()(PROMPT, response([0] * tokens)) for tokens in (16_384, 18_432, 20_480, 30_000)]
    assert penalties == [0.0, -0.5, -1.0, -1.0]
