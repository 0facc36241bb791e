"""Which rank of a training is killed when none gets on."""

from __future__ import annotations

from framework.actors.waits import Pulse
from framework.graph.deadlines import Deadlines
from framework.roles.rank_watch import RankWatch

TABLE = Deadlines(factor=2, first=50, silent=20, step=10)


class Ranks:
    """Two ranks whose pulses the test sets, on a clock of its own."""

    def __init__(self) -> None:
        self.now, self.killed, self.pulses = 0.0, list[str](), dict[str, Pulse]()
        self.watch = RankWatch("run", 2, TABLE, self.pulses.get, self.killed.append, lambda text: None)
        self.watch._watch.clock = lambda: self.now

    def run(self, seconds: int, beats: tuple[bool, bool], turns: tuple[bool, bool]) -> None:
        for _ in range(seconds):
            self.now += 1
            for rank in (0, 1):
                old = self.pulses.get(f"run:{rank}", Pulse(0, 0))
                self.pulses[f"run:{rank}"] = Pulse(old.beats + beats[rank], old.turns + turns[rank])
            self.watch.check()


def test_ranks_that_get_on_are_left_alone_however_long_they_take() -> None:
    ranks = Ranks()
    ranks.run(500, (True, True), (True, True))
    assert ranks.killed == []


def test_the_stopped_rank_is_killed_not_the_one_that_waits_for_it() -> None:
    ranks = Ranks()
    ranks.run(5, (True, True), (True, True))
    ranks.watch._watch.table = TABLE.__class__(**{**TABLE.__dict__, "step": 100})
    ranks.run(23, (True, False), (False, False))
    assert ranks.killed == ["run:1"]


def test_of_ranks_that_all_beat_the_one_furthest_behind_is_killed_once() -> None:
    ranks = Ranks()
    ranks.run(5, (True, True), (True, True))
    ranks.run(1, (True, True), (True, False))  # rank 1 hangs in this step, rank 0 in the next one's collective
    ranks.run(14, (True, True), (False, False))
    assert ranks.killed == ["run:1"]


def test_what_beat_before_a_restart_does_not_count() -> None:
    ranks = Ranks()
    ranks.run(5, (True, True), (True, True))
    ranks.watch.begin()
    ranks.run(500, (False, False), (False, False))
    assert ranks.killed == []
