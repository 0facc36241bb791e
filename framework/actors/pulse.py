"""A worker's pulse: a thread of its process beats into Ray's key-value store, whatever the process is busy with.

The driver can tell so a worker that works (or waits for another in a collective) from one that is stopped, or that no
network reaches: a call to an actor would only queue up behind its work.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable

from framework.actors.waits import Pulse

BEAT_EVERY_S = 1.0
_NAMESPACE, _WHERE = b"framework-pulse", ":where"


def beat(name: str = "", turns: Callable[[], int] = lambda: -1) -> None:
    """Beat for as long as this process lives, under `name` (default: the actor's id); nothing outside Ray's workers.

    `turns`: a count of what the work has come to, if it has one.
    """
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return
    context = ray.get_runtime_context()
    key = name or context.get_actor_id()
    place = json.dumps([context.get_node_id(), os.getpid()])
    with contextlib.suppress(Exception):  # only needed to kill this process, which Ray then can't either
        _put(f"{key}{_WHERE}".encode(), place)
    threading.Thread(target=_beat, args=(key.encode(), turns), daemon=True, name="pulse").start()


def pulse_of(name: str) -> Pulse | None:
    """The newest pulse under a name; None if there is none, or if Ray can't be asked just now."""
    found = _get(name)
    return Pulse(*json.loads(found)) if found else None


def whereabouts(name: str) -> tuple[str, int] | None:
    """Node id and process id of whoever beats, or has beaten last, under a name."""
    found = _get(f"{name}{_WHERE}")
    if not found:
        return None
    node, process = json.loads(found)
    return str(node), int(process)


def _get(key: str) -> bytes | None:
    from ray.experimental.internal_kv import _internal_kv_get

    found: bytes | None = None
    with contextlib.suppress(Exception):  # Ray's own death is noticed elsewhere
        found = _internal_kv_get(key.encode(), namespace=_NAMESPACE)
    return found


def _put(key: bytes, value: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value.encode(), overwrite=True, namespace=_NAMESPACE)


def _beat(key: bytes, turns: Callable[[], int]) -> None:
    beats = int(time.time() * 1000)  # a restarted worker's differ from its predecessor's
    while True:
        with contextlib.suppress(Exception):  # tried again: the store may be away for a while
            _put(key, json.dumps([beats, turns()]))
        beats += 1
        time.sleep(BEAT_EVERY_S)
