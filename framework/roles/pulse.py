"""A worker's pulse: a thread of its process beats into Ray's key-value store, whatever the process is busy with.

The driver can tell so a worker that works (or waits for another in a collective) from one that is stopped, or that no
network reaches: a call to an actor would only queue up behind its work.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable

from framework.roles.deadlines import Pulse

BEAT_EVERY_S = 1.0
_NAMESPACE = b"framework-pulse"


def beat(name: str = "", turns: Callable[[], int] = lambda: -1) -> None:
    """Beat for as long as this process lives, under `name` (default: the actor's id); nothing outside Ray's workers.

    `turns`: a count of what the work has come to, if it has one.
    """
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return
    key = name or ray.get_runtime_context().get_actor_id()
    threading.Thread(target=_beat, args=(key.encode(), turns), daemon=True, name="pulse").start()


def pulse_of(name: str) -> Pulse | None:
    """The newest pulse under a name; None if there is none, or if Ray can't be asked just now."""
    from ray.experimental.internal_kv import _internal_kv_get

    found = None
    with contextlib.suppress(Exception):  # Ray's own death is noticed elsewhere
        found = _internal_kv_get(name.encode(), namespace=_NAMESPACE)
    return Pulse(*json.loads(found)) if found else None


def _beat(key: bytes, turns: Callable[[], int]) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    beats = int(time.time() * 1000)  # a restarted worker's differ from its predecessor's
    while True:
        with contextlib.suppress(Exception):  # tried again: the store may be away for a while
            _internal_kv_put(key, json.dumps([beats, turns()]).encode(), overwrite=True, namespace=_NAMESPACE)
        beats += 1
        time.sleep(BEAT_EVERY_S)
