"""Every shipped algorithm raises a reward: batches as the loop builds them, a real learner that samples for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from framework.algorithms.mismatch import MismatchConfig
from framework.config import compose
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.engines.published_policy import PublishedPolicy
from framework.objectives.policy import PolicyObjective
from framework.objectives.policy_rows import PolicyRows
from framework.roles.learner import LearnerWorker
from framework.roles.rl_batch import build_batch
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup, TrainSample
from tests.learners import VOCAB, tiny_model
from tests.unit.objectives.test_shipped import NAMES

pytestmark = pytest.mark.slow
PROMPTS = [Prompt(f"p{i}", "", "", "", token_ids=(i + 1, 7, 9)) for i in range(4)]
G, BATCHES, LIMIT = 8, 6, 64


def policy(learner: PublishedPolicy, prompt: Prompt) -> np.ndarray:
    """Log-probability of every token as the first one after the prompt, [V]: all one-token responses, sharing it."""
    ids, none = np.asarray(prompt.token_ids, np.int32), np.zeros(1, np.float32)
    rows = [
        TrainSample(prompt.id, ids, np.array([token], np.int32), 0.0, none, np.zeros(1, np.int32))
        for token in range(VOCAB)
    ]
    return np.concatenate(learner.logprobs(rows))


def group(learner: PublishedPolicy, prompt: Prompt, version: int, rng: np.random.Generator) -> ScoredGroup:
    """G one-token responses; a low token is right."""
    logprobs_V = policy(learner, prompt)
    chances_V = np.exp(logprobs_V.astype(np.float64))
    tokens_G = rng.choice(VOCAB, G, p=chances_V / chances_V.sum())
    responses = tuple(
        Response(np.array([t], np.int32), logprobs_V[t : t + 1], np.full(1, version, np.int32), "stop")
        for t in tokens_G
    )
    right = [float(t < VOCAB // 2) for t in tokens_G]
    return ScoredGroup(ResponseGroup(prompt, responses), tuple(RewardScore(r, {"accuracy": r}) for r in right))


def chance_of_reward(learner: PublishedPolicy) -> float:
    return float(np.mean([np.exp(policy(learner, prompt))[: VOCAB // 2].sum() for prompt in PROMPTS]))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ppo"])  # with its critic: test_actor_critic.py
def test_the_reward_rises(name: str) -> None:
    shipped: Any = compose([f"algorithm={name}"]).algorithm
    objective: PolicyObjective = replace(shipped, reference_reset_steps=0).at_limit(LIMIT)
    rate = {"dr_grpo": 2e-2, "online_dpo": 2e-2}.get(name, 5e-3)  # Adam forgets the scale of a loss but for its epsilon
    config = DeepSpeedConfig(schedule=LrSchedule(lr=rate), token_budget=4096, weight_decay=0.0)
    rank = LearnerWorker()
    rank._learner = PublishedPolicy(tiny_model(), config, PolicyRows(objective))
    rng = np.random.default_rng(0)
    before = chance_of_reward(rank._learner)
    for version in range(BATCHES):
        groups = [group(rank._learner, prompt, version, rng) for prompt in PROMPTS]
        groups = [one for one in groups if objective.wants(one)]
        gate = MismatchConfig(stop_above=1e-3)
        result = rank.train(build_batch(groups, objective, 1, version, probe=4, seed=0, gate=gate))
        assert result.mismatch is not None
    after = chance_of_reward(rank._learner)
    assert before == pytest.approx(0.5, abs=0.2)
    assert after > before + 0.2, (before, after)
