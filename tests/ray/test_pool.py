"""The worker pool over real Ray actors: nothing is lost with a worker, and a worker that keeps dying ends the run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from framework.actors.pool import TRUSTED_AFTER, Done, Lost, WorkerPool
from framework.actors.pulse import beat
from framework.errors import RunFailed, UserError
from framework.graph.deadlines import Deadlines

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


class Worker:
    """Does as it is told once it is set up."""

    def __init__(self) -> None:
        self.is_set_up = False

    def set_up(self) -> None:
        self.is_set_up = True

    def work(self, what: str) -> str:
        assert self.is_set_up
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wrong input":
            raise UserError("prompt p", "too long", "must be shorter")
        if what == "raise":
            raise ZeroDivisionError("a bug")
        return what

    def die(self) -> None:
        os._exit(1)

    def ping(self) -> str:
        return "pong"

    def apply(self, func: Callable[..., Any], *args: Any) -> Any:
        return func(self, *args)


class Unborn(Worker):
    """Raises where no set-up can be tried again."""

    def __init__(self) -> None:
        raise ImportError("no module named verifier")


@pytest.fixture
def make_pool(ray_node: None) -> Iterator[Callable[..., WorkerPool]]:
    pools = []

    def make(max_restarts: int, cls: type[Worker] = Worker, set_up: str = "set_up") -> WorkerPool:
        actor = ray.remote(cls).options(num_cpus=0, max_restarts=-1).remote()
        pools.append(WorkerPool("toy", [actor], lambda worker: getattr(worker, set_up).remote(), max_restarts))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown()


def until(pool: WorkerPool, reached: Callable[[], bool]) -> list[Done | Lost]:
    outcomes, deadline = [], time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        outcomes += pool.poll(0.1)
    return outcomes


def ready(pool: WorkerPool) -> WorkerPool:
    until(pool, lambda: bool(pool.ready()))
    return pool


@pytest.mark.parametrize("end", ["die", "raise"])
def test_calls_of_a_lost_worker_come_back_and_it_is_set_up_again(
    make_pool: Callable[..., WorkerPool], end: str
) -> None:
    pool = ready(make_pool(3))
    for tag, what in (("a", "first"), ("b", end), ("c", "after")):
        pool.call(0, "work", what, tag=tag)
    outcomes = until(pool, lambda: pool.load(0) == 0)
    by_tag = {outcome.tag: outcome for outcome in outcomes}
    assert by_tag["a"] in (Done(0, "a", "first"), Lost(0, "a"))  # Ray may learn of the death before of the result
    assert by_tag["b"] == Lost(0, "b")
    assert by_tag["c"] in (Done(0, "c", "after"), Lost(0, "c"))
    assert len(outcomes) == 3
    until(pool, lambda: pool.ready() == [0])
    pool.call(0, "work", "again", tag="d")
    assert until(pool, lambda: pool.load(0) == 0) == [Done(0, "d", "again")]
    assert pool.restarts == 1


def test_wrong_input_is_raised_as_it_is(make_pool: Callable[..., WorkerPool]) -> None:
    pool = ready(make_pool(3))
    pool.call(0, "work", "wrong input", tag="a")
    with pytest.raises(UserError, match="prompt p: got 'too long'; must be shorter"):
        until(pool, lambda: False)


def test_a_worker_that_keeps_failing_ends_the_run_with_its_reason(make_pool: Callable[..., WorkerPool]) -> None:
    pool = ready(make_pool(0))
    pool.call(0, "work", "raise", tag="a")
    with pytest.raises(RunFailed, match=r"toy worker 0 failed; 0 restarts used up: .*a bug"):
        until(pool, lambda: False)


@pytest.mark.parametrize(
    ("cls", "set_up", "reason"),
    [
        (Worker, "die", "toy worker 0 failed; 1 restarts used up"),
        (Unborn, "set_up", "toy worker 0 cannot be started: ImportError: no module named verifier"),
    ],
)
def test_a_worker_that_never_gets_ready_ends_the_run(
    make_pool: Callable[..., WorkerPool], cls: type[Worker], set_up: str, reason: str
) -> None:
    with pytest.raises(RunFailed, match=reason):
        ready(make_pool(1, cls, set_up))


def test_restarts_are_forgotten_once_the_worker_has_proved_itself(make_pool: Callable[..., WorkerPool]) -> None:
    pool = ready(make_pool(1))
    pool.call(0, "work", "raise", tag="bad")
    until(pool, lambda: pool.load(0) == 0)
    ready(pool)
    for calls, restarts in ((TRUSTED_AFTER - 1, 1), (1, 0)):
        for tag in range(calls):
            pool.call(0, "work", "good", tag=tag)
        until(pool, lambda: pool.load(0) == 0)
        assert pool.restarts == restarts


def test_polling_without_calls_leaves_the_core_to_others(make_pool: Callable[..., WorkerPool]) -> None:
    pool = ready(make_pool(0))
    before = time.monotonic()
    for _ in range(10):
        assert pool.poll(0.05) == []
    assert time.monotonic() - before >= 0.5  # it slept


class Beating(Worker):
    """Beats while it works."""

    def set_up(self) -> None:
        super().set_up()
        beat()

    def publish(self) -> int:
        return os.getpid()

    def score(self, seconds: float = 1000) -> str:
        time.sleep(seconds)
        return "awake"


TIGHT = Deadlines(first=60, silent=3, score=60)


def pool_of(cls: type[Worker], count: int = 1, table: Deadlines = TIGHT, **options: Any) -> WorkerPool:
    actors = [ray.remote(cls).options(**{"num_cpus": 0, "max_restarts": -1} | options).remote() for _ in range(count)]
    asks = {"CPU": float(options.get("num_cpus", 0))}
    return WorkerPool("toy", actors, lambda worker: worker.set_up.remote(), 3, deadlines=table, asks=asks)


def test_a_stopped_worker_is_replaced_and_its_calls_come_back(
    ray_node: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of(Beating)
    until(pool, lambda: pool.ready() == [0])
    pool.call(0, "publish", tag="where")
    (found,) = until(pool, lambda: pool.load(0) == 0)
    assert isinstance(found, Done)
    pool.call(0, "score", 0.1, tag="warm")
    until(pool, lambda: pool.load(0) == 0)
    pool.call(0, "score", 5, tag="long")  # works for longer than `silent`, and beats
    assert until(pool, lambda: pool.load(0) == 0) == [Done(0, "long", "awake")]
    os.kill(found.result, signal.SIGSTOP)
    for tag in ("a", "b"):
        pool.call(0, "work", "first", tag=tag)
    stopped = time.monotonic()
    assert set(until(pool, lambda: pool.load(0) == 0)) == {Lost(0, "a"), Lost(0, "b")}
    assert time.monotonic() - stopped < 10
    until(pool, lambda: pool.ready() == [0])
    assert not os.path.exists(f"/proc/{found.result}")  # killed, though it could not hear
    assert "toy worker 0 lost (gave no sign of life for" in capsys.readouterr().out
    pool.call(0, "work", "again", tag="c")
    assert until(pool, lambda: pool.load(0) == 0) == [Done(0, "c", "again")]
    pool.shutdown()


def test_a_call_that_never_ends_is_lost_though_its_process_lives(ray_node: None) -> None:
    pool = pool_of(Beating, table=Deadlines(first=2, silent=60, start=60, score=1))
    until(pool, lambda: pool.ready() == [0])
    pool.call(0, "score", tag="a")
    assert until(pool, lambda: pool.load(0) == 0) == [Lost(0, "a")]
    pool.shutdown()


def test_a_place_that_never_comes_ends_the_run_and_says_what_is_missing(
    ray_node: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of(Beating, table=Deadlines(place=3), num_cpus=5)
    reason = r"toy worker 0 found no place for \d+ s: it asks for 5 CPU, the cluster has 2, 2 of them free"
    with pytest.raises(RunFailed, match=reason):
        until(pool, lambda: False)
    assert "waiting for a place for toy worker 0" in capsys.readouterr().out
    pool.shutdown()


def test_an_error_that_every_fresh_worker_raises_ends_the_run_at_once(ray_node: None) -> None:
    pool = pool_of(Beating, count=2)
    until(pool, lambda: pool.ready() == [0, 1])
    for worker in (0, 1):
        pool.call(worker, "work", "raise", tag=worker)
    with pytest.raises(RunFailed, match=r"fails at its first work, as one did before: .*a bug"):
        until(pool, lambda: False)
    assert pool.restarts == 1
    pool.shutdown()
