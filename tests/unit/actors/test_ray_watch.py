"""Ray's death is told from this process's own absence, and a start that never ends has a limit."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from framework.actors import ray_session as session
from framework.actors import ray_watch
from framework.actors.ray_watch import RayWatch
from framework.graph.cluster import ClusterConfig
from framework.graph.deadlines import Deadlines


class Over:
    """An event that is never set, and each wait of which takes as long as it is told."""

    def __init__(self, clock: list[float], waits: list[float]) -> None:
        self._clock, self._waits = clock, waits

    def wait(self, seconds: float) -> bool:
        if not self._waits:
            return True
        self._clock[0] += self._waits.pop(0)
        return False

    def is_set(self) -> bool:
        return False


@pytest.mark.parametrize(("waits", "dies"), [([1.0] * 41, True), ([1.0] * 30, False), ([1.0, 500.0, 1.0], False)])
def test_a_head_is_dead_only_if_this_process_has_waited_for_it(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], dies: bool
) -> None:
    """Ctrl-Z stops a run with its terminal's process group, and not its Ray."""
    clock, dead = [0.0], list[str]()
    monkeypatch.setattr(ray_watch.time, "monotonic", lambda: clock[0])
    watch: Any = RayWatch(40.0, dead.append)
    watch._own, watch._address, watch._over = {}, "head", Over(clock, list(waits))
    watch._watch()
    assert bool(dead) is dies


def test_a_ray_that_does_not_start_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    said, over = list[str](), threading.Event()

    def never(*_: object) -> None:
        assert over.wait(60)
        raise ConnectionError

    def end(text: str) -> None:
        said.append(text)
        over.set()

    monkeypatch.setattr(session, "start_ray", never)
    slow = ClusterConfig(deadlines=Deadlines(start=0.2))
    with pytest.raises(ConnectionError), session.ray_session(slow, end):
        pass
    assert said == ["Ray has not started, or not answered, for 0.2 s"]
    monkeypatch.setattr(session, "start_ray", lambda *_: time.sleep(0.05))
    monkeypatch.setattr(session, "RayWatch", lambda *_: threading.Lock())
    monkeypatch.setattr(session, "shutdown", lambda: time.sleep(0.4))
    with session.ray_session(slow, end):
        pass
    assert len(said) == 1
