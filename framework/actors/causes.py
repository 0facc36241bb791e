"""What an error of Ray's says, in one line."""

from __future__ import annotations

import re

_MEMORY = re.compile(r"(\d[\d.]*\s*[KMGT]i?B)(?: used)?\s*/\s*(\d[\d.]*\s*[KMGT]i?B)")

_COLLECTIVE = re.compile(r"gloo|nccl|connection|timed? ?out|peer|collective", re.IGNORECASE)
_PORT = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)


def is_collective(text: str) -> bool:
    """Whether an error is that of a collective operation: as a rule another rank's fault."""
    return bool(_COLLECTIVE.search(text))


def port_taken(error: BaseException) -> bool:
    """Whether a port that was chosen for a process group was taken before it was bound."""
    return bool(_PORT.search(str(error)))


def is_death(error: BaseException) -> bool:
    """Whether a process is gone, or was ended: what it was asked to do is not to blame."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        return isinstance(error.cause, ray.exceptions.RayError) and is_death(error.cause)
    deaths = (
        ray.exceptions.RayActorError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.ObjectLostError,
        TimeoutError,
    )
    return isinstance(error, deaths) and not getattr(error, "_actor_init_failed", False)


def cause(error: BaseException) -> str:
    """Ray's first line where Ray itself ended the process, else the last line: of a traceback it is the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    killed = next((line for line in lines if "running low on memory" in line), None)
    if killed is None:
        return lines[-1]
    used = _MEMORY.search(" ".join(lines))
    return f"Ray killed it: {used[1]} of {used[2]} in use" if used else f"Ray killed it: {killed}"
