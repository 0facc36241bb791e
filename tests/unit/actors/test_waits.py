"""Whom a role waits for and when it stops: on a clock of the test's own."""

from __future__ import annotations

import pytest

from framework.actors import placing
from framework.actors.placing import Placing
from framework.actors.waits import Overdue, Pulse, Watch
from framework.errors import RunFailed, UserError
from framework.graph.deadlines import Deadlines

TABLE = Deadlines(factor=10, first=100, silent=30, score=20, generate=40, place=50)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watch(clock: Clock, said: list[str]) -> Watch:
    return Watch("reward worker", TABLE, clock, said.append)


def reasons(watch: Watch, clock: Clock, seconds: float, pulse=lambda worker: None) -> list[tuple[float, str]]:  # type: ignore[no-untyped-def]
    """What a check a second says, with its second."""
    found = []
    for second in range(1, int(seconds) + 1):
        clock.now += 1
        found += [(second, late.reason) for late in watch.check(pulse)]
    return found


def test_the_first_call_has_the_first_limit_later_ones_a_multiple_of_the_longest(watch: Watch, clock: Clock) -> None:
    watch.begin("a", 0, "score")
    assert reasons(watch, clock, 100) == []
    assert reasons(watch, clock, 1) == [(1, "did not answer for 101 s (score)")]
    watch.forget(0)
    for took in (3.0, 1.0):
        watch.begin("b", 0, "score")
        clock.now += took
        assert watch.end("b") == pytest.approx(took)
    watch.begin("c", 0, "score")
    assert reasons(watch, clock, 31) == [(31, "did not answer for 31 s (score)")]


@pytest.mark.parametrize(("took", "least", "limit"), [(0.1, 0.0, 20), (0.1, 50.0, 50), (4.0, 0.0, 40)])
def test_floor_and_least_hold(watch: Watch, clock: Clock, took: float, least: float, limit: int) -> None:
    watch.begin("a", 0, "score")
    clock.now += took
    watch.end("a")
    watch.begin("b", 0, "score", least)
    assert [second for second, _ in reasons(watch, clock, limit + 1)] == [limit + 1]


def test_it_says_whom_it_waits_for_after_a_tenth_and_once(watch: Watch, clock: Clock, said: list[str]) -> None:
    for key in ("a", "b"):
        watch.begin(key, 3, "score")
    reasons(watch, clock, 10)
    assert said == []
    reasons(watch, clock, 60)
    (line,) = said
    assert line.startswith("waiting for reward worker 3 (score) since ")
    assert line.endswith(", 11 s; it is replaced after 100 s")


def test_a_worker_without_a_pulse_is_lost_long_before_its_first_limit(watch: Watch, clock: Clock) -> None:
    watch.begin("a", 0, "score")
    watch.begin("b", 1, "score")
    found = reasons(watch, clock, 40, lambda worker: Pulse(0) if worker == 0 else Pulse(int(clock.now)))
    assert found[0] == (33, "gave no sign of life for 31 s (score)")  # read from the second second on
    watch.forget(0)
    assert reasons(watch, clock, 50, lambda worker: Pulse(int(clock.now))) == []


def test_a_worker_that_gets_on_has_time_and_one_that_does_not_has_none(watch: Watch, clock: Clock) -> None:
    for took in (5.0,):
        watch.begin("old", 0, "generate")
        clock.now += took
        watch.end("old")
    watch.begin("a", 0, "generate")
    assert reasons(watch, clock, 90, lambda worker: Pulse(int(clock.now), int(clock.now) // 30)) == []
    beating = reasons(watch, clock, 60, lambda worker: Pulse(int(clock.now), 7))
    assert "did nothing for 41 s (generate)" in {reason for _, reason in beating}


def test_what_a_call_may_take_at_least_holds_for_its_progress_too(watch: Watch, clock: Clock) -> None:
    watch.begin("a", 0, "generate", least=90)  # as a model's weights by their bytes
    beating = lambda worker: Pulse(int(clock.now), 5)  # noqa: E731
    assert reasons(watch, clock, 88, beating) == []
    assert reasons(watch, clock, 10, beating)


def test_a_watcher_that_was_away_blames_nobody(watch: Watch, clock: Clock) -> None:
    watch.begin("a", 0, "score")
    reasons(watch, clock, 5)
    clock.now += 500
    assert watch.check(lambda worker: None) == []
    assert reasons(watch, clock, 90) == []
    assert reasons(watch, clock, 10)[0][0] == 6


def test_each_late_worker_is_named_once(watch: Watch, clock: Clock) -> None:
    for key in range(5):
        watch.begin(key, key % 2, "score")
    clock.now += 5
    reasons(watch, clock, 90)
    clock.now += 7
    late = watch.check(lambda worker: None)
    assert [type(item) for item in late] == [Overdue, Overdue]
    assert {item.worker for item in late} == {0, 1}


def test_a_place_that_never_comes_is_named(clock: Clock, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"a": "PENDING_CREATION", "b": "PENDING_CREATION"}
    monkeypatch.setattr(placing, "state_of", states.get)
    monkeypatch.setattr(placing, "missing", lambda asks: f"it asks for {asks['CPU']:g} CPU")
    waiting = Placing("reward worker", TABLE.place, {"CPU": 2}, clock, said.append)
    for worker, actor in enumerate("ab"):
        waiting.begin(worker, actor)
    clock.now += 6
    states["a"] = "ALIVE"
    assert waiting.placed() == [0]
    waiting.check()
    waiting.check()
    assert said == ["waiting for a place for reward worker 1 for 6 s: it asks for 2 CPU"]
    clock.now += 45
    with pytest.raises(RunFailed, match="reward worker 1 found no place for 51 s: it asks for 2 CPU"):
        waiting.check()


@pytest.mark.parametrize("changes", [{"factor": 0.5}, {"score": 0.0}, {"stop": float("nan")}, {"ray": -1.0}])
def test_times_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        Deadlines(**changes)


def test_variants_of_a_verb_have_its_floor() -> None:
    table = Deadlines(score=20, generate=40, other=7)
    floors = [table.floor(verb) for verb in ("generate_apart", "score_stored", "update_weights", "look")]
    assert floors == [40, 20, table.update_weights, 7]
