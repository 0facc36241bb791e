"""The reward worker as a real Ray actor: bad rewards become failed samples, a killed actor raises at its caller."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.actors.pool import WorkerPool
from framework.engines.vllm_engine import VllmConfig
from framework.errors import UserError
from framework.graph.cluster import ClusterConfig
from framework.roles.reward import RewardWorker
from framework.stages.workers import sampling_pools
from tests.contract.sample_rewards import CONFIG, Unpreparable, group_of
from tests.contract.test_scorer import is_dead

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def worker(ray_node: None) -> Iterator[Any]:
    actor = ray.remote(RewardWorker).options(num_cpus=0, max_restarts=-1, max_task_retries=0).remote(CONFIG)
    ray.get(actor.start.remote())
    yield actor
    ray.kill(actor)


def test_hanging_raising_and_nan_rewards_are_failed_samples(worker: Any) -> None:
    scores = ray.get(worker.score.remote(group_of("1", "hang", "raise", "nan", "exit", "2")))
    assert [score.total for score in scores] == [2.0, 0.0, 0.0, 0.0, 0.0, 4.0]
    reasons = ("", "timed out", "ZeroDivisionError", "nan", "exit code 3", "")
    for score, reason in zip(scores, reasons, strict=True):
        assert reason in score.error
        assert bool(score.error) == bool(reason)


def test_a_killed_actor_raises_at_the_caller_and_comes_back(worker: Any) -> None:
    pid, child = ray.get(worker.apply.remote(lambda worker: (os.getpid(), worker._scorer.pid)))
    pending = worker.score.remote(group_of("hang"))
    ready, _ = ray.wait([worker.ping.remote()], timeout=0.3)
    assert not ready  # it is scoring
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(pending)
    assert is_dead(child)  # though the actor could not say goodbye, and the reward hangs
    assert ray.get(worker.ping.options(max_task_retries=-1).remote(), timeout=60) == "pong"
    assert ray.get(worker.score.remote(group_of("3")))[0].total == 6.0


def test_rewards_that_cannot_be_loaded_end_the_run_with_the_reason(ray_node: None) -> None:
    rewards = replace(CONFIG, components={"bad": Unpreparable()})
    with sampling_pools(ClusterConfig(), VllmConfig(), rewards, Path()) as pools:
        reason = r"reward\.components: got 'bad'; .*ImportError: no module named verifier"
        with pytest.raises(UserError, match=reason):
            poll_for(pools.reward, seconds=60)


def test_what_rewards_print_is_in_a_file_a_worker(ray_node: None, tmp_path: Path) -> None:
    with sampling_pools(ClusterConfig(), VllmConfig(), CONFIG, Path(), tmp_path) as pools:
        while not (ready := pools.reward.ready()):
            pools.reward.poll(0.1)
        pools.reward.call(ready[0], "score", group_of("print", "raise"), tag="group")
        while not (done := pools.reward.poll(0.1)):
            pass
        (log,) = tmp_path.glob(f"reward-{done[0].worker}.log")
        assert "x" * 100_000 in log.read_text()
        assert "prompt p0: reward obedient raised:" in log.read_text()


def poll_for(pool: WorkerPool, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pool.poll(0.1)
