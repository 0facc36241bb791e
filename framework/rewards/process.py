"""One reward process as its parent sees it: framework.rewards.child at the other end of a socket and three pipes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import RunFailed, UserError
from framework.rewards.base import MAX_ERROR_CHARS, RewardConfig
from framework.rewards.blame import error_text, place_of_dump
from framework.rewards.child import FORK, HEADER_BYTES, REAP, SCORE
from framework.types import ResponseGroup, RewardScore

# What any program needs. Keys and tokens of the run stay out of reach of reward code.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
DEVICES = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")  # which cards its worker was given; without them it would see all
REPLY_LIMIT_S = 10.0  # of the loader, which only forks and waits
LEAVING_S = 2.0  # of a worker that has said that it ends
STACK_LIMIT_S = 0.3  # of a worker asked where it is


class RewardLoader:
    """The process that has the rewards loaded, in its own session; it forks workers."""

    def __init__(self, config: RewardConfig, log: Path | None = None) -> None:
        self._config, self._ready = config, False
        environment = {
            name: os.environ[name] for name in (*ENVIRONMENT, *DEVICES, *config.environment) if name in os.environ
        }
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # plug-ins import too
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        ours, theirs = socket.socketpair()
        arguments = [str(os.getpid()), str(config.memory_limit_mb), str(theirs.fileno())]
        with contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            output = stack.enter_context(log.open("ab")) if log is not None else sys.__stderr__
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "framework.rewards.child", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._control = ours
        self._lines = _Lines(ours.fileno())

    def wait_ready(self) -> None:
        """Return once the rewards are imported; raises UserError with the child's reason if that fails."""
        if self._ready:
            return
        deadline = time.monotonic() + self._config.startup_limit_s
        try:
            components = pickle.dumps(dict(self._config.components))
        except Exception as error:  # pickle raises whatever it likes
            self.kill()
            names, why = ", ".join(self._config.components), error_text(error)
            allowed = f"they live in a process of their own and cannot be sent there: {why}"
            raise UserError("reward.components", names, allowed) from error
        try:
            _send(self._control.fileno(), components, deadline)
            message = self._lines.next(deadline)
        except TimeoutError:
            self.kill()
            raise RunFailed(f"the reward process was not ready after {self._config.startup_limit_s:g} s") from None
        except (EOFError, BrokenPipeError, ConnectionError):
            raise RunFailed(f"the reward process died while it started: {self.kill()}") from None
        if "fatal" in message:
            self.kill()
            names = ", ".join(self._config.components)
            raise UserError("reward.components", names, f"the rewards cannot be loaded: {message['fatal']}")
        self._ready = True

    def fork(self, *pipes: int) -> int:
        """Return the process id of a new worker; raises EOFError or TimeoutError if this process is not up to it."""
        try:
            socket.send_fds(self._control, [FORK], pipes)
        except OSError:
            raise EOFError from None
        return int(self._lines.next(time.monotonic() + REPLY_LIMIT_S)["pid"])

    def reap(self) -> str:
        """Return how the worker that has just ended did so, in words."""
        try:
            self._control.send(REAP)
            return _ending(int(self._lines.next(time.monotonic() + REPLY_LIMIT_S)["status"]))
        except (OSError, EOFError, TimeoutError, KeyError):
            return self.kill()

    def kill(self) -> str:
        """Kill this process and return how it ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # one that closed its socket is about to end by itself: let it say how
            self._process.wait(timeout=0.5 if self._lines.at_end() else 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._control.close()
        return _ending(self._process.wait())

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None


class RewardWorkerProcess:
    """One forked worker: the process that scores."""

    def __init__(self, config: RewardConfig, loader: RewardLoader) -> None:
        self._config, self._loader = config, loader
        self.running = ""  # what it does now: a reward's name, or the check of the reference
        self.left = ""  # by which error that nothing catches it has ended, and where
        requests, self._requests = os.pipe()
        self._results, results = os.pipe()
        self._stacks, stacks = os.pipe()
        os.set_blocking(self._requests, False)  # a stopped child must not block the parent's write
        try:
            self.pid = loader.fork(requests, results, stacks)
        finally:
            for pipe in (requests, results, stacks):
                os.close(pipe)
        self._lines = _Lines(self._results)

    def request(self, group: ResponseGroup, start: int, given: Mapping[str, float]) -> None:
        """Ask for the scores of responses start, start + 1, … of the group; of the first, `given` is known already."""
        self.ask(SCORE, group, start, dict(given))

    def ask(self, verb: str, *arguments: object) -> None:
        """Send a request: SCORE, or one of `framework.rewards.child.QUESTIONS`."""
        message = pickle.dumps((verb, *arguments), protocol=pickle.HIGHEST_PROTOCOL)
        _send(self._requests, message, time.monotonic() + self._config.time_limit_s)

    def next_answer(self, limit_s: float | None = None) -> dict[str, Any]:
        """Return the next line; raises TimeoutError past the limit (default: a response's), EOFError if it failed."""
        return self._next(time.monotonic() + (self._config.time_limit_s if limit_s is None else limit_s))

    def next_score(self) -> RewardScore:
        """Return the next response's score; raises TimeoutError past its limit, EOFError if the child failed."""
        deadline = time.monotonic() + self._config.limit_s
        while "running" in (message := self._next(deadline)):
            self.running = str(message["running"])
        try:
            components = {str(name): float(value) for name, value in message["components"].items()}
            extracted = message.get("extracted")
            answer = None if extracted is None else _clean(extracted)
            tokens = int(message.get("tokens", 0))
            return RewardScore(float(message["total"]), components, _clean(message["error"]), answer, tokens)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise EOFError from None

    def _next(self, deadline: float) -> dict[str, Any]:
        found = self._lines.next(deadline)
        if not isinstance(found, dict):
            raise EOFError
        if "left" in found:
            self.left = f", {_clean(found['left'])}"[:MAX_ERROR_CHARS]
            with contextlib.suppress(TimeoutError):  # EOFError as soon as it has ended: how, its loader says
                self._lines.next(time.monotonic() + LEAVING_S)
            raise EOFError
        return found

    def where(self) -> str:
        """Return the author's "file:line" that it is at, if it can tell: a stopped process cannot."""
        dump = b""
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            os.kill(self.pid, signal.SIGUSR1)
            deadline = time.monotonic() + STACK_LIMIT_S
            while not place_of_dump(dump.decode(errors="replace")):
                _wait(self._stacks, select.POLLIN, deadline)
                if not (block := os.read(self._stacks, 1 << 16)):
                    break
                dump += block
        return place_of_dump(dump.decode(errors="replace"))

    def kill(self) -> str:
        """Kill it and everything it started; return how it ended, in words."""
        if self._lines.at_end():
            time.sleep(0.05)  # it is about to end by itself: let it say how
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        ending = self._loader.reap()
        for pipe in (self._requests, self._results, self._stacks):
            os.close(pipe)
        return ending


def _clean(text: object) -> str:
    """A text that every file and terminal takes: half of a surrogate pair is shown as its number."""
    return str(text).encode(errors="backslashreplace").decode()


class _Lines:
    """Reads JSON lines from a descriptor, each before a deadline."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._received = descriptor, b""

    def next(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            _wait(self._descriptor, select.POLLIN, deadline)
            try:
                block = os.read(self._descriptor, 1 << 16)
            except OSError:
                raise EOFError from None
            if not block:
                raise EOFError
            self._received += block
        line, self._received = self._received.split(b"\n", 1)
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:  # code under a reward got hold of the pipe
            raise EOFError from None
        return message

    def at_end(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def _send(descriptor: int, message: bytes, deadline: float) -> None:
    data = memoryview(len(message).to_bytes(HEADER_BYTES, "big") + message)
    while data:
        _wait(descriptor, select.POLLOUT, deadline)
        data = data[os.write(descriptor, data[: 1 << 16]) :]


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
