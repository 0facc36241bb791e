"""Scoring in a process of its own: a reward may hang, crash or exhaust memory without taking the run along."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Self

from framework.errors import RunFailed, UserError
from framework.rewards.base import RewardConfig, score_response
from framework.rewards.child import HEADER_BYTES
from framework.types import ResponseGroup, RewardScore

# What any program needs. Keys and tokens of the run stay out of reach of reward code.
ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


class InProcessScorer:
    """Scores in the caller's process, unguarded: for tests and for rewards that are known to be harmless."""

    def __init__(self, config: RewardConfig) -> None:
        self._components = dict(config.components)
        for reward in self._components.values():
            reward.prepare()

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        """Return G scores; a reward that hangs or crashes takes the caller along."""
        return tuple(score_response(self._components, group.prompt, response) for response in group.responses)


class IsolatedScorer:
    """Scores in a child process, with a time limit for each response.

    A response whose reward raises, returns no finite number, exceeds the limit or kills its process scores 0 and says
    so in `error`; the rest of its group is scored by a fresh process. Raises UserError for rewards that cannot be
    loaded (an import that fails, for instance), and RunFailed if their process does not start.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._lock = threading.Lock()  # the pipe carries one conversation
        self._process = _RewardProcess(config)
        self._process.wait_ready()

    def score(self, group: ResponseGroup) -> tuple[RewardScore, ...]:
        """Return G scores, within about G x time_limit_s at the very worst."""
        with self._lock:
            scores: list[RewardScore] = []
            while len(scores) < len(group.responses):
                try:
                    self._process.wait_ready()
                    self._process.request(group, start=len(scores))
                    while len(scores) < len(group.responses):
                        scores.append(self._process.next_score())
                except TimeoutError:
                    self._replace_process()
                    error = f"reward timed out after {self._config.time_limit_s:g} s"
                    scores.append(RewardScore(0.0, error=error))
                except (EOFError, BrokenPipeError):
                    scores.append(RewardScore(0.0, error=f"reward process died: {self._replace_process()}"))
            return tuple(scores)

    @property
    def pid(self) -> int:
        """Process id of the present child."""
        return self._process.pid

    def close(self) -> None:
        """Kill the child and everything it started."""
        self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replace_process(self) -> str:
        """Kill the child, start the next one (it gets ready in the background) and return how the old one ended."""
        ending = self._process.kill()
        self._process = _RewardProcess(self._config)
        return ending


class _RewardProcess:
    """One child: framework.rewards.child at the other end of two pipes, in its own session and process group."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._ready = False
        self._received = b""
        environment = {name: os.environ[name] for name in (*ENVIRONMENT, *config.environment) if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)  # plug-ins import too
        environment["OMP_NUM_THREADS"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "framework.rewards.child", str(os.getpid()), str(config.memory_limit_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that kill() reaches what a reward started
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._results = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)  # a stopped child must not block the parent's write
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._results, select.POLLIN)
        self._writable.register(self._requests, select.POLLOUT)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        """Return once the rewards are imported; raises UserError with the child's reason if that fails."""
        if self._ready:
            return
        deadline = time.monotonic() + self._config.startup_limit_s
        try:
            self._send(pickle.dumps(dict(self._config.components)), deadline)
            message = self._receive(deadline)
        except TimeoutError:
            self.kill()
            raise RunFailed(f"the reward process was not ready after {self._config.startup_limit_s:g} s") from None
        except (EOFError, BrokenPipeError):
            raise RunFailed(f"the reward process died while it started: {self.kill()}") from None
        if "fatal" in message:
            self.kill()
            names = ", ".join(self._config.components)
            raise UserError("reward.components", names, f"the rewards cannot be loaded: {message['fatal']}")
        self._ready = True

    def request(self, group: ResponseGroup, start: int) -> None:
        """Ask for the scores of responses start, start + 1, … of the group."""
        message = pickle.dumps((group, start), protocol=pickle.HIGHEST_PROTOCOL)
        self._send(message, time.monotonic() + self._config.time_limit_s)

    def next_score(self) -> RewardScore:
        """Return the next response's score; raises TimeoutError past its limit, EOFError if the child failed."""
        message = self._receive(time.monotonic() + self._config.time_limit_s)
        try:
            components = {str(name): float(value) for name, value in message["components"].items()}
            return RewardScore(float(message["total"]), components, str(message["error"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise EOFError from None

    def kill(self) -> str:
        """Kill the whole process group and return how the child ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # a child that closed its pipe is about to end by itself: let it say how
            self._process.wait(timeout=0.5 if self._at_end() else 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _at_end(self) -> bool:
        return any(event & select.POLLHUP for _, event in self._readable.poll(0))

    def _send(self, message: bytes, deadline: float) -> None:
        data = memoryview(len(message).to_bytes(HEADER_BYTES, "big") + message)
        while data:
            _wait(self._writable, deadline)
            data = data[os.write(self._requests, data) :]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            _wait(self._readable, deadline)
            block = os.read(self._results, 1 << 16)
            if not block:
                raise EOFError
            self._received += block
        line, self._received = self._received.split(b"\n", 1)
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:  # code under a reward got hold of the pipe
            raise EOFError from None
        return message


def _wait(poll: select.poll, deadline: float) -> None:
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
