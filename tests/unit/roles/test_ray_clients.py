"""The rollout and reward clients over a pool that answers when it is told to."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import pytest

from framework.actors.pool import Done, Lost, WorkerPool
from framework.roles.ray_clients import RayRewards, RayRollouts
from framework.types import Prompt, ResponseGroup, SamplingParams

PARAMS = SamplingParams(1.0, 1.0, 8, 4)


class Pool:
    """Two workers; calls stay out until `answer` or `kill`."""

    def __init__(self) -> None:
        self.alive = [0, 1]
        self.out: list[tuple[int, str, Hashable]] = []
        self.given: list[tuple[int, str, tuple[Any, ...]]] = []  # every call's arguments
        self.outcomes: list[Done | Lost] = []

    def ready(self) -> list[int]:
        return self.alive

    def load(self, worker: int) -> int:
        return sum(at == worker for at, _, _ in self.out)

    def call(self, worker: int, method: str, *args: Any, tag: Hashable) -> None:
        self.given.append((worker, method, args))
        self.out.append((worker, method, tag))

    def poll(self, timeout_s: float) -> list[Done | Lost]:
        assert timeout_s == 0, "the loop waits for all roles at once, not for one"
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def sampling(self, worker: int) -> int:
        return sum(at == worker and method == "generate" for at, method, _ in self.out)

    def answer(self, worker: int, method: str) -> None:
        self._end(worker, method, lambda tag: Done(worker, tag, f"result of {tag}"))

    def kill(self, worker: int) -> None:
        self.alive = [other for other in self.alive if other != worker]
        for method in ("update_weights", "generate", "score"):
            self._end(worker, method, lambda tag: Lost(worker, tag))

    def _end(self, worker: int, method: str, outcome: Any) -> None:
        self.outcomes += [outcome(tag) for at, name, tag in self.out if (at, name) == (worker, method)]
        self.out = [call for call in self.out if call[:2] != (worker, method)]


def make(limit: int = 8) -> tuple[Pool, RayRollouts]:
    pool = Pool()
    rollouts = RayRollouts(cast(WorkerPool, pool), limit)
    rollouts.publish(0, ["weights"])
    return pool, rollouts


def submit(rollouts: RayRollouts, tickets: range) -> None:
    for ticket in tickets:
        rollouts.submit(ticket, Prompt(f"p{ticket}", "", "", "", token_ids=(1,)), PARAMS)


def test_workers_sleep_when_they_have_nothing_to_do_and_wake_with_the_next_weights():
    pool, rollouts = make()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    submit(rollouts, range(1))
    assert not rollouts.sleep()
    assert [call[:2] for call in pool.out] == [(0, "generate"), (1, "sleep")], "the first still samples"
    pool.answer(1, "sleep")
    pool.answer(0, "generate")
    rollouts.poll()
    assert not rollouts.sleep()
    assert rollouts.free_slots() == 0
    pool.answer(0, "sleep")
    rollouts.poll()
    assert rollouts.sleep()
    rollouts.publish(1, ["weights"])
    assert [call[:2] for call in pool.out] == [(0, "update_weights"), (1, "update_weights")]


def test_a_worker_that_restarts_in_the_learners_turn_gets_no_weights_before_its_own():
    pool, rollouts = make()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    pool.kill(1)
    rollouts.poll()
    rollouts.sleep()
    pool.answer(0, "sleep")
    pool.alive = [0, 1]  # it is back
    rollouts.poll()
    sent = len(pool.given)
    assert not rollouts.sleep()
    assert pool.given[sent:] == [(1, "sleep", ())], "it is told to sleep, and is sent no weights"


def test_what_was_being_sampled_before_a_recovery_keeps_nobody_awake():
    pool, rollouts = make()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    submit(rollouts, range(4))
    rollouts.forget()
    rollouts.sleep()
    assert {call[:2] for call in pool.out} >= {(0, "sleep"), (1, "sleep")}


def test_the_first_worker_to_acknowledge_does_not_take_the_whole_batch():
    pool, rollouts = make()
    pool.answer(0, "update_weights")
    rollouts.poll()
    assert rollouts.free_slots() == 16
    submit(rollouts, range(8))
    assert (pool.sampling(0), pool.sampling(1)) == (4, 0), "the second worker has not acknowledged yet"
    pool.answer(1, "update_weights")
    rollouts.poll()
    assert (pool.sampling(0), pool.sampling(1)) == (4, 4)


def test_groups_held_for_a_worker_that_dies_come_back():
    pool, rollouts = make()
    pool.answer(0, "update_weights")
    rollouts.poll()
    submit(rollouts, range(6))
    held = set(range(6)) - {tag.ticket for _, method, tag in pool.out if method == "generate"}
    pool.kill(1)
    assert dict(rollouts.poll()) == dict.fromkeys(held)
    assert len(held) == 3
    submit(rollouts, range(6, 8))
    assert pool.sampling(0) == 5


def test_a_version_published_before_the_last_was_acknowledged_is_what_held_groups_wait_for():
    pool, rollouts = make()
    submit(rollouts, range(2))
    rollouts.publish(1, ["newer weights"])
    assert rollouts.free_slots() == 0, "neither worker has been sent the newest version"
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    assert (pool.sampling(0), pool.sampling(1)) == (0, 0)
    assert not rollouts.synced()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    assert (pool.sampling(0), pool.sampling(1)) == (1, 1)
    assert rollouts.synced()


def test_recovery_forgets_what_was_held():
    pool, rollouts = make()
    submit(rollouts, range(4))
    rollouts.forget()
    rollouts.publish(0, ["weights"])
    for _ in range(2):
        for worker in (0, 1):
            pool.answer(worker, "update_weights")
        rollouts.poll()
    assert rollouts.synced()
    assert (pool.sampling(0), pool.sampling(1)) == (0, 0)


def test_a_reward_worker_gets_its_next_group_when_it_is_free() -> None:
    """Groups do not queue up behind one whose verifiers hang."""
    pool = Pool()
    rewards = RayRewards(cast(WorkerPool, pool))
    group = ResponseGroup(Prompt("p", "", "", ""), ())
    for ticket in range(6):
        rewards.submit(ticket, group)
    assert [pool.load(worker) for worker in (0, 1)] == [1, 1]
    scored = []
    for _ in range(5):  # worker 0 hangs
        pool.answer(1, "score")
        scored += [ticket for ticket, _ in rewards.poll()]
    assert scored == [1, 2, 3, 4, 5]
    pool.answer(0, "score")
    assert [ticket for ticket, _ in rewards.poll()] == [0]


def test_groups_wait_while_no_reward_worker_is_ready_and_a_recovery_forgets_them() -> None:
    pool = Pool()
    pool.alive = []
    rewards = RayRewards(cast(WorkerPool, pool))
    group = ResponseGroup(Prompt("p", "", "", ""), ())
    rewards.submit(0, group)
    pool.alive = [0]
    rewards.poll()
    assert pool.load(0) == 1
    rewards.submit(1, group)
    rewards.forget()
    pool.answer(0, "score")
    assert rewards.poll() == []
    assert pool.load(0) == 0


@pytest.mark.parametrize("ends", ["answer", "kill"])
def test_groups_sampled_before_a_recovery_are_not_taken_for_those_after_it(ends: str):
    """The same ticket is issued again; what the old call returns, or that its worker died, is not about that."""
    pool, rollouts = make()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    submit(rollouts, range(2))
    assert (pool.sampling(0), pool.sampling(1)) == (1, 1)
    rollouts.forget()
    rollouts.publish(0, ["weights"])
    pool.answer(0, "generate") if ends == "answer" else pool.kill(0)
    assert rollouts.poll() == []
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    submit(rollouts, range(1))
    for worker in (0, 1):
        pool.answer(worker, "generate")
    found = rollouts.poll()
    assert [ticket for ticket, _ in found] == [0], "and not ticket 1, of before"
    assert "era=1" in str(found[0][1])


@pytest.mark.parametrize("ends", ["answer", "kill"])
def test_scores_of_before_a_recovery_are_not_taken_for_those_after_it(ends: str):
    pool = Pool()
    rewards = RayRewards(cast(WorkerPool, pool))
    group = ResponseGroup(Prompt("p", "", "", ""), ())
    rewards.submit(0, group)
    rewards.forget()
    pool.answer(0, "score") if ends == "answer" else pool.kill(0)
    assert rewards.poll() == []
    rewards.submit(0, group)
    pool.answer(0, "score") or pool.answer(1, "score")
    ((ticket, scores),) = rewards.poll()
    assert ticket == 0
    assert "era=1" in str(scores)


def test_workers_are_called_with_what_was_published_and_what_was_submitted() -> None:
    pool, rollouts = make()
    rollouts.publish(3, ["newer", "weights"])
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    assert pool.given == [
        (0, "update_weights", (0, "weights")),
        (1, "update_weights", (0, "weights")),
        (0, "update_weights", (3, "newer", "weights")),
        (1, "update_weights", (3, "newer", "weights")),
    ]
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    prompt = Prompt("p", "2 + 2", "t", "4", token_ids=(1, 2))
    rollouts.submit(7, prompt, PARAMS)
    assert pool.given[4:] == [(0, "generate", (prompt, PARAMS))]
    rewards, group = RayRewards(cast(WorkerPool, pool)), ResponseGroup(prompt, ())
    rewards.submit(7, group)
    assert pool.given[5:] == [(1, "score", (group,))]


@pytest.mark.parametrize("acknowledged", [False, True])
def test_free_slots_count_groups_held_and_groups_sent_but_no_update(acknowledged: bool) -> None:
    pool, rollouts = make(limit=2)
    for worker in (0, 1) if acknowledged else ():
        pool.answer(worker, "update_weights")
    rollouts.poll()
    assert rollouts.free_slots() == 4
    for taken in range(1, 5):
        submit(rollouts, range(taken - 1, taken))
        assert rollouts.free_slots() == 4 - taken
    submit(rollouts, range(4, 5))  # above the limit of the first worker, which takes nothing off the second's room
    assert rollouts.free_slots() == 0
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    assert (pool.sampling(0), pool.sampling(1)) == (3, 2)
    pool.answer(1, "generate")
    assert rollouts.free_slots() == 2
    assert len(rollouts.poll()) == 2


def test_a_worker_that_starts_again_gets_the_newest_weights_before_any_group() -> None:
    pool, rollouts = make()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    assert rollouts.synced()
    pool.kill(1)
    assert rollouts.poll() == []
    assert rollouts.synced(), "all that are there serve it"
    pool.alive = [0, 1]
    assert not rollouts.synced()
    rollouts.poll()
    assert pool.given[2:] == [(1, "update_weights", (0, "weights"))]
    submit(rollouts, range(2))
    assert (pool.sampling(0), pool.sampling(1)) == (1, 0)
    pool.answer(1, "update_weights")
    rollouts.poll()
    assert (pool.sampling(0), pool.sampling(1)) == (1, 1)
    assert rollouts.synced()
    pool.alive = []
    assert not rollouts.synced(), "no worker serves anything"


def test_after_a_recovery_nothing_is_sent_before_the_next_publish() -> None:
    pool, rollouts = make()
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    for version in (0, 0):
        rollouts.forget()
        pool.out, sent = [], len(pool.given)
        rollouts.poll()
        assert len(pool.given) == sent
        assert not rollouts.synced(), "what they serve is of before"
        assert rollouts.free_slots() == 0
        rollouts.publish(version, ["weights"])
        assert [method for _, method, _ in pool.given[sent:]] == ["update_weights"] * 2
        for worker in (0, 1):
            pool.answer(worker, "update_weights")
        rollouts.poll()
        assert rollouts.synced()


@pytest.mark.parametrize("ends", ["answer", "kill"])
def test_every_recovery_is_told_from_the_one_before(ends: str) -> None:
    pool, rollouts = make()
    rewards = RayRewards(cast(WorkerPool, Pool()))
    reward_pool = cast(Pool, rewards._pool)
    group = ResponseGroup(Prompt("p", "", "", ""), ())
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    for _ in range(2):
        rollouts.forget()
        rewards.forget()
    rollouts.publish(0, ["weights"])
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    submit(rollouts, range(1))
    rewards.submit(0, group)
    rollouts.forget()
    rewards.forget()
    for of, method in ((pool, "generate"), (reward_pool, "score")):
        of.answer(0, method) if ends == "answer" else of.kill(0)
    assert rollouts.poll() == []
    assert rewards.poll() == []


def test_groups_of_a_dead_worker_come_back_without_a_result() -> None:
    pool, rollouts = make()
    rewards_pool = Pool()
    rewards = RayRewards(cast(WorkerPool, rewards_pool))
    for worker in (0, 1):
        pool.answer(worker, "update_weights")
    rollouts.poll()
    submit(rollouts, range(2))
    rewards.submit(5, ResponseGroup(Prompt("p", "", "", ""), ()))
    pool.kill(0)
    rewards_pool.kill(0)
    assert rollouts.poll() == [(0, None)]
    assert rewards.poll() == [(5, None)]
