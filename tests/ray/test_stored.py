"""Responses in the object store of a machine that goes: what is told of them stays, and nobody else dies of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.actors.pool import WorkerPool
from framework.actors.rank_group import Rank
from framework.algorithms.mismatch import MismatchConfig
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.errors import ResponsesLost
from framework.objectives.grpo import Grpo
from framework.roles.batch_parts import At, filled
from framework.roles.learner import LearnerConfig
from framework.roles.learner_group import LearnerGroup
from framework.roles.object_store import stays_where_it_is
from framework.roles.ray_clients import RayRewards, RayRollouts
from framework.roles.reward import RewardWorker
from framework.roles.rl_batch import TrainBatch, build_batch
from framework.roles.rl_clients import TrainResult
from framework.roles.rollout import RolloutWorker
from framework.stored import ScoredStored, StoredGroup
from framework.types import Prompt, Response, ResponseGroup, RewardScore, SamplingParams, StepResult, TrainSample
from tests.unit.roles.test_stored import batch_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TOKENS, GROUP = 12_000, 4
PARAMS = SamplingParams(max_tokens=TOKENS, n=GROUP)


class LongRollouts(RolloutWorker):
    """Whose engine answers at once, at length."""

    def __init__(self) -> None:
        self._turns, self._sampler = False, self  # type: ignore[assignment]

    async def start(self, checkpoint: Path) -> None:
        pass

    async def generate(self, prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        ids = np.arange(params.max_tokens, dtype=np.int32)
        one = Response(ids, -np.ones(len(ids), np.float32), np.zeros(len(ids), np.int32), "length", prompt.id)
        return ResponseGroup(prompt, (one,) * params.n)

    async def update_weights(self, version: int, *shares: Any) -> int:
        return version

    async def ping(self) -> str:
        return "pong"


class LengthRewards(RewardWorker):
    """Scores by the number of tokens that it finds."""

    def __init__(self) -> None:
        pass

    def start(self) -> None:
        pass

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        return tuple(RewardScore(float(len(response.token_ids))) for response in group.responses)


class CountingRank(Rank):
    """Trains on nothing, and tells how many of the batch's responses it was sent."""

    def start(self, rank: int, world: int, host: str, port: int, config: LearnerConfig) -> None:
        pass

    def train(self, batch: TrainBatch, at: tuple[At, ...] = (), *responses: Response) -> TrainResult:
        batch = filled(batch, dict(zip(at, responses, strict=True)))
        here = [s for m in batch.minibatches for s in m.samples if isinstance(s, TrainSample)]
        step = StepResult(1, {"here": float(len(here)), "sent": float(len(responses))})
        return TrainResult((step,), None, 0.0, sum(sample.length for sample in here))


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head, and a machine that has the resource "far"."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", "0")
    store = 100 * 2**20
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": store})
    found.far = found.add_node(num_cpus=0, resources={"far": 1}, object_store_memory=store)
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(address=found.address, log_to_driver=False, runtime_env=environment)
    yield found
    ray.shutdown()
    found.shutdown()


def until(polled: Callable[[], list[Any]], n: int) -> list[Any]:
    found, deadline = list[Any](), time.monotonic() + 120
    while len(found) < n:
        assert time.monotonic() < deadline, f"{len(found)} of {n}"
        found += polled()
        time.sleep(0.02)
    return found


def trained(group: LearnerGroup) -> TrainResult:
    deadline = time.monotonic() + 120
    while (result := group.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def built(groups: list[Any]) -> TrainBatch:
    scored = [ScoredStored(group, tuple(RewardScore(float(g % 2)) for g in range(GROUP))) for group in groups]
    return build_batch(scored, Grpo(), 2, 0, 0, 0, MismatchConfig())


def test_long_responses_stay_with_their_machine_and_are_missed_when_it_goes(cluster: Any) -> None:
    import ray

    assert stays_where_it_is(GROUP, TOKENS)
    assert not stays_where_it_is(8, 64)
    sampler = ray.remote(LongRollouts).options(max_restarts=-1, num_cpus=0, resources={"far": 1}).remote()
    scorer = ray.remote(LengthRewards).options(max_restarts=-1, num_cpus=1).remote()
    rollout, reward = WorkerPool("rollout", [sampler]), WorkerPool("reward", [scorer])
    rollouts, rewards = RayRollouts(rollout, 8), RayRewards(reward)
    rollouts.publish(0, ["weights"])
    while not rollouts.synced():
        rollouts.poll()
    prompts = [Prompt(f"p{i}", "", "", "", token_ids=(1, 2)) for i in range(5)]
    for ticket, prompt in enumerate(prompts):
        rollouts.submit(ticket, prompt, PARAMS)
    groups = dict(until(rollouts.poll, 5))
    assert all(isinstance(group, StoredGroup) for group in groups.values())
    assert groups[2].responses[3].outline.length == TOKENS
    assert groups[2].responses[3].load().text == "p2"
    rewards.submit(0, groups[0])
    ((ticket, scores),) = until(rewards.poll, 1)
    assert (ticket, [score.total for score in scores]) == (0, [float(TOKENS)] * GROUP)

    engine = DeepSpeedConfig(token_budget=2 * TOKENS)
    learner = LearnerGroup(LearnerConfig(Path(), engine), 2, worker=CountingRank)
    learner.start()
    batch, unseen = built([groups[0], groups[1]]), built([groups[3], groups[4]])
    learner.train(batch)
    (step,) = trained(learner).steps
    assert step.metrics == {"here": GROUP, "sent": GROUP}  # half of the two groups
    learner.train(batch_of([[2, 2]], 1, keep=False))
    assert trained(learner).tokens == 4, "short ones come with the batch"

    cluster.remove_node(cluster.far)
    rewards.submit(1, groups[2])
    ((ticket, lost),) = until(rewards.poll, 1)
    assert ticket == 1
    assert isinstance(lost, ResponsesLost)
    assert (reward.ready(), reward.restarts) == ([0], 0), "the worker is not to blame"
    with pytest.raises(ResponsesLost, match="lost with its machine"):
        groups[2].responses[0].load()
    learner.train(unseen)
    with pytest.raises(ResponsesLost, match=r"learner rank .: what it was to work on is lost: Object"):
        trained(learner)
    reward.shutdown()
    learner.shutdown()
