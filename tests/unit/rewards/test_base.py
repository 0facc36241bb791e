from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from framework.config import compose
from framework.data.layouts.prompts import load_prompts
from framework.data.readers import read_prompts, write_prompts
from framework.data.tasks import TaskConfig, generate
from framework.data.tokenizer_training import TokenizerConfig
from framework.errors import UserError
from framework.rewards.base import Reward, RewardConfig, score_response
from framework.rewards.format import Format
from framework.stages.collect import check_given_prompts
from framework.types import Prompt
from tests.contract.sample_rewards import Obedient, response_of

PROMPT = Prompt("p0", "question", "t", "a")


def test_the_total_is_the_weighted_sum_of_the_components() -> None:
    components = {"a": Obedient(weight=2.0), "b": Obedient(weight=-0.5)}
    score = score_response(components, PROMPT, response_of("3"))
    assert (score.total, score.components, score.error) == (4.5, {"a": 3.0, "b": 3.0}, "")


def test_a_prompt_may_choose_its_rewards() -> None:
    components = {"a": Obedient(weight=2.0), "b": Obedient()}
    score = score_response(components, Prompt("p0", "q", "t", "a", rewards=("b",)), response_of("3"))
    assert (score.total, score.components) == (3.0, {"b": 3.0})


def test_a_failed_component_keeps_what_was_scored_and_gives_nothing() -> None:
    class Broken(Reward):
        def __call__(self, prompt: Prompt, response: object) -> float:
            return math.inf

    score = score_response({"a": Obedient(), "b": Broken()}, PROMPT, response_of("3"))
    assert (score.total, score.components) == (0.0, {"a": 3.0})
    assert score.error == "reward b raised ValueError: returned inf, not a finite number"


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("reward.components", {"components": {}}),
        ("reward.components.a", {"components": {"a": "accuracy"}}),
        ("reward.components.a", {"components": {"a": Reward()}}),  # a yaml node without a _target_
        ("RewardConfig.time_limit_s", {"time_limit_s": 0}),
        ("RewardConfig.startup_limit_s", {"startup_limit_s": math.inf}),
        ("RewardConfig.memory_limit_mb", {"memory_limit_mb": -1}),
        ("RewardConfig.max_failed_share", {"max_failed_share": 1.5}),
    ],
)
def test_a_wrong_setting_is_named(key: str, change: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        RewardConfig(**({"components": {"a": Format()}} | change))  # type: ignore[arg-type]
    assert caught.value.where == key


def test_a_weight_is_finite() -> None:
    with pytest.raises(UserError, match=r"^Format\.weight: got nan; must be a finite number"):
        Format(weight=math.nan)


def test_a_prompt_that_asks_for_an_unknown_reward_is_named() -> None:
    config = RewardConfig({"accuracy": Obedient(), "format": Format()})
    config.check_prompts([PROMPT, Prompt("p1", "q", "t", "a", rewards=("format",))])
    with pytest.raises(UserError, match=r"prompt p7.*'acuracy'.*did you mean 'accuracy'"):
        config.check_prompts([Prompt("p7", "q", "t", "a", rewards=("acuracy",))])


def test_an_unknown_reward_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": name, "prompt": f"{name}?", "answer": "1", "rewards": ["accuracy"]} for name in "abc"]
    rows[2]["rewards"] = ["format", "languag"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RewardConfig({"accuracy": Obedient(), "format": Format(), "language": Obedient()})
    prompts = load_prompts(str(file))
    config.check_prompts(prompts[:2])
    with pytest.raises(UserError, match=r"prompts.jsonl:3: rewards: got 'languag'; did you mean 'language'"):
        config.check_prompts(prompts)
    write_prompts(tmp_path / "kept.jsonl", prompts)
    assert "where" not in (tmp_path / "kept.jsonl").read_text()
    assert read_prompts(tmp_path / "kept.jsonl") == prompts


def test_r1s_rewards_are_chosen_by_the_prompt() -> None:
    """R1v2 eq. 4, 7 and 8: rules and language for reasoning; a general prompt is not asked for a reference."""
    config = compose(["reward=r1"]).reward
    assert set(config.components) == {"accuracy", "format", "language"}
    text = "<think>twelve and one</think> <answer>13</answer>"
    reasoning = Prompt("p0", "Add 12 and 1.", "math", "13", ("accuracy", "format", "language"))
    general = Prompt("p1", "Say hello.", "general_greeting", "Hello!", ("format", "language"))
    assert score_response(config.components, reasoning, response_of(text)).total == 3.0
    assert score_response(config.components, general, response_of(text)).components == {"format": 1.0, "language": 1.0}


def test_a_generated_tasks_rewards_are_checked_at_plan_and_go_with_its_prompts() -> None:
    data = compose(["data.tasks.chain_sum.rewards=[acuracy]"]).data
    with pytest.raises(UserError, match=r"data.tasks.chain_sum.rewards: got 'acuracy'; did you mean 'accuracy'"):
        check_given_prompts(data, compose().reward, TokenizerConfig(), 128, 16)
    prompt = next(generate("chain_sum", TaskConfig(rewards=("accuracy",)), 0, 1))
    assert prompt.rewards == ("accuracy",)
