"""The reward process: runs anyone's reward code away from the run. Started by framework.rewards.isolation.

Two processes: one loads the rewards and then only forks; its child, the worker, scores. A worker that hangs or dies is
replaced by the next fork in milliseconds, where loading the rewards again would take seconds.

Requests come in as length-prefixed pickles. Results go out as JSON lines, because the parent must not unpickle what
these processes say: a reward may execute code that a model wrote.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO, NoReturn

from framework.rewards.base import Reward, describe_error, score_response
from framework.rewards.blame import error_text, place_of_error
from framework.rewards.questions import Lines, check_lines, vote_lines
from framework.types import Prompt, Response, ResponseGroup

HEADER_BYTES = 8  # big-endian length of the pickle that follows
FORK, REAP = b"f", b"r"  # what the parent asks of the loader
SCORE = "score"
QUESTIONS: Mapping[str, Callable[..., Lines]] = {"check": check_lines, "vote": vote_lines}
CHECK = "the check of the reference answer"


def main(parent: int, memory_limit_mb: int, control_fd: int) -> None:
    """Load the rewards, then fork a worker whenever the parent asks, until it closes the socket."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_mb:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_mb << 20, memory_limit_mb << 20))
    workers: list[int] = []  # at most one: this process's loop below never stands still, so it kills for a worker too
    threading.Thread(target=_die_with, args=(parent, workers), daemon=True).start()
    control = socket.socket(fileno=control_fd)
    try:
        with control.makefile("rb", buffering=0) as stream:
            given = _read(stream)
        if not given:
            return  # who started it has gone
        components: Mapping[str, Reward] = pickle.loads(given)
        for reward in components.values():
            reward.prepare()
    except Exception as error:
        traceback.print_exc()
        place = place_of_error(error)
        reason = error_text(error) + (f" ({place})" if place else "")
        _write(control_fd, {"fatal": reason})
        return
    _write(control_fd, {"ready": True})
    while True:
        order, pipes, _, _ = socket.recv_fds(control, 1, 3)
        if not order:  # who asked has gone
            _kill(workers)
            return
        if order == REAP:
            _write(control_fd, {"status": os.waitstatus_to_exitcode(os.waitpid(workers.pop(), 0)[1])})
            continue
        loader = os.getpid()
        worker = os.fork()
        if worker == 0:
            control.close()
            _work(components, loader, *pipes)
        workers.append(worker)
        os.setpgid(worker, worker)  # so that a kill reaches what a reward started, and not this process
        for pipe in pipes:
            os.close(pipe)
        _write(control_fd, {"pid": worker})


def _work(components: Mapping[str, Reward], loader: int, requests_fd: int, results: int, stacks: int) -> NoReturn:
    """Answer every request until the parent closes the pipe; never returns."""
    code, answers = 0, _Answers(results)
    for pipe in (requests_fd, results, stacks):  # a program that a reward starts must not keep them open
        os.set_inheritable(pipe, False)
    try:
        if os.getpgid(0) != os.getpid():
            os.setpgid(0, 0)
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)
        threading.Thread(target=_die_with, args=(loader, ()), daemon=True).start()
        with os.fdopen(requests_fd, "rb") as requests:
            while request := _read(requests):
                verb, *arguments = pickle.loads(request)
                if verb == SCORE:
                    group, start, given = arguments
                    _score_group(components, group.prompt, group.responses, start, given, answers)
                else:
                    for line in QUESTIONS[verb](components, *arguments):
                        answers.write(line)
    except BaseException as leaving:  # a reward that calls sys.exit, or is interrupted
        code = leaving.code & 0xFF if isinstance(leaving, SystemExit) and isinstance(leaving.code, int) else 1
        with contextlib.suppress(Exception):
            traceback.print_exc()
        with contextlib.suppress(Exception):
            place = place_of_error(leaving)
            answers.write({"left": error_text(leaving) + (f" ({place})" if place else "")})
    with contextlib.suppress(Exception):  # a reward may have closed it
        sys.stdout.flush()
    os._exit(code)


class _Answers:
    """Where the worker's lines go. A copy of the worker that a reward forks and lets come back ends here.

    Its lines would be taken for the worker's own: scores of other responses.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe, self._process = pipe, os.getpid()

    def write(self, message: dict[str, Any]) -> None:
        """Send a line."""
        if os.getpid() != self._process:
            os._exit(0)
        _write(self._pipe, message)


def _score_group(
    components: Mapping[str, Reward],
    prompt: Prompt,
    responses: tuple[Response, ...],
    start: int,
    given: Mapping[str, float],
    answers: _Answers,
) -> None:
    def before(name: str) -> None:
        answers.write({"running": name})

    group = ResponseGroup(prompt, responses)  # all of it: where it is scored in parts, those before `start` count too
    broken = ""
    chosen: dict[str, Reward] = {}
    for name in prompt.rewards or components:
        before(name)
        try:
            chosen[name] = components[name].for_group(group)
            judges = chosen[name].fails_as_wrong
        except Exception as error:
            broken = broken or describe_error(f"reward {name}, looking at the group,", prompt, error)
            continue
        if judges:
            before(CHECK)
            try:
                chosen[name].check(prompt)
            except Exception as error:
                broken = broken or describe_error(f"reward {name}, checking the reference answer,", prompt, error)
    for place, response in enumerate(responses[start:]):
        if broken:
            answers.write({"total": 0.0, "components": {}, "error": broken})
            continue
        anew = partial(pickle.loads, pickle.dumps((prompt, response), pickle.HIGHEST_PROTOCOL))
        score = score_response(chosen, prompt, response, given if place == 0 else None, before, anew)
        message = {"total": score.total, "components": dict(score.components), "error": score.error}
        answers.write(message | {"extracted": score.extracted, "tokens": score.tokens})


def _read(pipe: BinaryIO | socket.SocketIO) -> bytes:
    header = _read_exactly(pipe, HEADER_BYTES)
    return _read_exactly(pipe, int.from_bytes(header, "big")) if header else b""


def _read_exactly(pipe: BinaryIO | socket.SocketIO, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (block := pipe.read(size - len(data))):
        data += block
    return bytes(data)


def _write(pipe: int, message: dict[str, Any]) -> None:
    line = memoryview(json.dumps(message).encode() + b"\n")
    while line:
        line = line[os.write(pipe, line) :]


def _die_with(parent: int, workers: Sequence[int]) -> None:
    """Kill `workers`, this process and what they all started once the parent is gone, even if a reward hangs.

    A worker watches its loader by itself as well, but cannot while a reward holds the interpreter's lock.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    _kill((*workers, 0))


def _kill(groups: Sequence[int]) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
