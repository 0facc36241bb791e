"""The learner group over real Ray actors: two ranks train as one, and a killed rank is named and replaced."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.actors.rank_group import PortTaken, RanksLost
from framework.algorithms.mismatch import MismatchConfig
from framework.engines.deepspeed_engine import DeepSpeedConfig
from framework.engines.lr_schedule import LrSchedule
from framework.errors import RunFailed, Stopped, UserError
from framework.graph.cluster import ClusterConfig
from framework.graph.deadlines import Deadlines
from framework.graph.nodes import Runtime
from framework.objectives.grpo import Grpo
from framework.roles.learner import LearnerConfig
from framework.roles.learner_group import LearnerGroup
from framework.roles.rl_batch import TrainBatch
from framework.roles.rl_clients import TrainResult
from framework.stages.divergence import with_divergence
from framework.stages.eval_numbers import JudgedGroup
from framework.types import Prompt, Response, ResponseGroup, RewardScore, ScoredGroup
from tests.fake_clients import RecordingTracker
from tests.learners import minibatch, samples, tiny_learner, tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    tiny_model().save_pretrained(path)
    return path


def config(checkpoint: Path, ep_size: int) -> LearnerConfig:
    engine = DeepSpeedConfig(
        ep_size=ep_size, token_budget=128, threads=1, schedule=LrSchedule(lr=1e-3), collective_timeout_s=60
    )
    return LearnerConfig(checkpoint, engine, Grpo(kl_coef=0.01, old_logprobs="learner"))


def batch() -> TrainBatch:
    gate = MismatchConfig(stop_above=100.0)  # nobody sampled these
    return TrainBatch((minibatch(seed=0), minibatch(seed=1)), probe=samples(4), version=0, gate=gate)


def trained(group: LearnerGroup, timeout_s: float = 120.0) -> TrainResult:
    deadline = time.monotonic() + timeout_s
    while (result := group.poll()) is None:
        assert time.monotonic() < deadline, "training did not end"
        time.sleep(0.01)
    return result


def test_two_ranks_train_publish_die_and_resume(ray_node: None, checkpoint: Path, tmp_path: Path) -> None:
    import ray

    stopping = False
    table = Deadlines(silent=6, stop=2)
    group = LearnerGroup(config(checkpoint, ep_size=2), ranks=2, deadlines=table, should_stop=lambda: stopping)
    group.start()
    group.train(batch())
    first = trained(group)
    assert [step.step for step in first.steps] == [1, 2]
    assert first.mismatch is not None
    assert first.mismatch.tokens == sum(len(sample.response_ids) for sample in samples(4))
    assert first.steps[0].metrics["ratio"] == pytest.approx(1.0)  # old logprobs are the learner's own
    shares = ray.get(list(group.publish(1)))
    assert [share.version for share in shares] == [1, 1]
    names = [tensor.name for share in shares for tensor in share.tensors]
    assert len(names) == len(set(names))
    group.save(tmp_path)
    expected = group.logprobs(samples())

    victim = pid_of(group, 1)
    group.train(replace(batch(), minibatches=(minibatch(),) * 500))
    time.sleep(0.5)
    assert group.poll() is None
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(RanksLost, match="rank 1 of 2 died"):
        trained(group)
    with pytest.raises(RanksLost):
        group.publish(2)
    group.load(tmp_path)
    for ours, theirs in zip(group.logprobs(samples()), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    os.kill(pid_of(group, 0), signal.SIGKILL)  # while nothing is asked of it
    with pytest.raises(RanksLost, match="rank 0 of 2 died"):
        trained(group, timeout_s=20)
    group.load(tmp_path)

    stopped = pid_of(group, 1)  # as a stuck kernel or a dead network: rank 0 waits for it in a collective
    os.kill(stopped, signal.SIGSTOP)
    group.train(batch())
    with pytest.raises(RanksLost, match="learner rank 1 of 2 gave no sign of life"):
        trained(group, timeout_s=30)
    group.load(tmp_path)
    assert not os.path.exists(f"/proc/{stopped}")

    group.train(replace(batch(), minibatches=(minibatch(),) * 5000))  # for longer than a stop may take
    assert group.poll() is None
    stopping, asked = True, time.monotonic()
    with pytest.raises(Stopped, match="the last checkpoint stands"):
        trained(group)
    assert 2 <= time.monotonic() - asked < 10
    stopping = False
    group.load(tmp_path)

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"full: got 'the disk is full'"):
        group.export(tmp_path / "full")
    group.shutdown()


def test_a_bad_checkpoint_reaches_the_driver_as_the_users_error(ray_node: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        LearnerGroup(config(tmp_path, ep_size=1)).start()


def pid_of(group: LearnerGroup, rank: int) -> int:
    import ray

    def pid(_worker: Any) -> int:
        return os.getpid()

    found: int = ray.get(group._workers[rank].__ray_call__.remote(pid))
    return found


class Rank:
    """A rank without an engine; its port may be taken."""

    def address(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    def start(self, rank: int, world: int, host: str, port: int, config: LearnerConfig) -> None:
        if config.temperature == 2.0:
            raise RuntimeError("The server socket has failed to listen: EADDRINUSE (98, Address already in use)")


def test_the_rank_that_failed_is_blamed_not_the_one_that_reports_it(
    ray_node: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ranks(Rank):
        def start(self, rank: int, world: int, host: str, port: int, config: LearnerConfig) -> None:
            super().start(rank, world, host, port, config)
            self.rank = rank

        def save(self, directory: Path) -> None:
            if self.rank == 0:
                raise RuntimeError("[gloo] Connection closed by peer")
            time.sleep(1)
            raise ZeroDivisionError("a bug")

        def load(self, directory: Path) -> None:
            if self.rank == 0:
                raise RuntimeError("[gloo] Timed out waiting 5000ms for recv operation")
            time.sleep(1000)

    monkeypatch.setattr("framework.actors.rank_group._DEATH_NOTICE_S", 3.0)
    group = LearnerGroup(LearnerConfig(tmp_path), ranks=2, worker=Ranks, actor_options=[{"num_cpus": 0}] * 2)
    group.start()
    with pytest.raises(RunFailed, match=r"learner rank 1 failed: .*a bug"):
        group.save(tmp_path)
    group.start()
    with pytest.raises(RanksLost, match="rank 0 failed in a collective, though every rank lives") as lost:
        group.load(tmp_path)
    assert "[]" not in str(lost.value)
    config = LearnerConfig(tmp_path, temperature=2.0)
    taken = LearnerGroup(config, ranks=1, worker=Ranks, actor_options=[{"num_cpus": 0}])
    with pytest.raises(PortTaken):
        taken.start()
    assert capsys.readouterr().out.count("port was taken by another process; trying another one") == 2


def test_how_far_a_policy_has_gone_is_read_by_the_same_ranks(ray_node: None, checkpoint: Path, tmp_path: Path) -> None:
    tiny_model(1).save_pretrained(tmp_path / "policy")
    found = samples(3)
    prompts = [
        Prompt(str(place), "", "t", "", token_ids=tuple(map(int, s.prompt_ids))) for place, s in enumerate(found)
    ]
    groups = [
        JudgedGroup(ScoredGroup(ResponseGroup(prompt, (response,)), (RewardScore(1.0, {"rule": 1.0}),)), ())
        for prompt, sample in zip(prompts, found, strict=True)
        for response in [Response(sample.response_ids, sample.sampler_logprobs, sample.weight_versions, "stop")]
    ]
    running = Runtime("eval", tmp_path, tmp_path, 0, ClusterConfig(), RecordingTracker(), lambda: False)
    told = with_divergence(groups, tmp_path / "policy", checkpoint, 0.7, DeepSpeedConfig(threads=1), running)
    ours, theirs = (tiny_learner(seed, temperature=0.7).logprobs(found) for seed in (1, 0))
    expected = [float((a - b).sum()) for a, b in zip(ours, theirs, strict=True)]
    kl = [group.scored.scores[0].components["kl"] for group in told]
    np.testing.assert_allclose(kl, expected, atol=1e-4)
    assert max(map(abs, kl)) > 0.1
