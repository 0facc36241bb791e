"""The reward process: runs anyone's reward code away from the run. Started by framework.roles.isolation.

Requests come in as length-prefixed pickles. Results go out as JSON lines, one a response, because the parent must not
unpickle what this process says: a reward may execute code that a model wrote.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from framework.rewards.base import Reward, score_response

HEADER_BYTES = 8  # big-endian length of the pickle that follows


def main(parent: int, memory_limit_mb: int) -> None:
    """Load the rewards, then score every group asked for until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_mb:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_mb << 20, memory_limit_mb << 20))
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    requests, results = _take_over_pipes()
    try:
        components: Mapping[str, Reward] = pickle.loads(_read(requests))
        for reward in components.values():
            reward.prepare()
    except Exception as error:
        _write(results, {"fatal": f"{type(error).__name__}: {error}"})
        return
    _write(results, {"ready": True})
    while request := _read(requests):
        group, start = pickle.loads(request)
        for response in group.responses[start:]:
            score = score_response(components, group.prompt, response)
            _write(results, {"total": score.total, "components": dict(score.components), "error": score.error})


def _take_over_pipes() -> tuple[BinaryIO, int]:
    """Move the pipes off stdin and stdout: a reward that prints or reads must not disturb the protocol."""
    requests, results = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return requests, results


def _read(pipe: BinaryIO) -> bytes:
    header = pipe.read(HEADER_BYTES)
    return pipe.read(int.from_bytes(header, "big")) if header else b""


def _write(pipe: int, message: dict[str, Any]) -> None:
    line = memoryview(json.dumps(message).encode() + b"\n")
    while line:
        line = line[os.write(pipe, line) :]


def _die_with(parent: int) -> None:
    """Kill this process and what it started once the parent is gone, even if a reward hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(parent=int(sys.argv[1]), memory_limit_mb=int(sys.argv[2]))
