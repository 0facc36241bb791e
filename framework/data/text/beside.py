"""A process beside this one that calls functions: a text that kills it (a crash in native code) kills nothing else."""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from framework.errors import RunFailed, UserError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1
BEAT_S, SILENT_S = 1.0, 60.0  # between two signs of life; without any
_BEAT = b"beat"
# Bytes that a document may take: less than what Ray or the kernel would kill another process for
_MEMORY = min(4 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
_MANY, _SHARE = 20, 0.1  # of documents that kill their process: more is no matter of single ones


class Died(Exception):
    """The process ended amid a call; says how."""


class Beside:
    """Calls functions in one process, which is started for the first call and again once it has died.

    It ends with this one. Functions go over by name, arguments and results as copies. `memory` is how many bytes a
    call may take; one that wants more raises MemoryError. While it works, a thread of it says every second that it
    lives: after `silent_s` without a word it is taken for dead. `while_waiting` is called meanwhile, and may raise.
    """

    def __init__(
        self, memory: int = 0, silent_s: float = SILENT_S, while_waiting: Callable[[], None] = lambda: None
    ) -> None:
        self._memory, self._silent_s, self._while_waiting = memory, silent_s, while_waiting
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns; raises what it raises, and Died if the process did not survive it."""
        if self._connection is None:
            self._connection = self._start()
        try:
            self._connection.send_bytes(pickle.dumps((function, arguments)))
            returned, found = pickle.loads(self._answer(self._connection))
        except (EOFError, ConnectionError):
            raise Died(self.close()) from None
        except (TimeoutError, BlockingIOError):  # nothing said; nothing read
            self.close()
            raise Died(f"no sign of life for {self._silent_s:g} s") from None
        if not returned:
            raise found
        result: T = found
        return result

    def _answer(self, connection: Connection) -> bytes:
        """The next word but signs of life; raises TimeoutError. Counts waits, not time: this process may be stopped."""
        silent_s = 0.0
        while silent_s <= self._silent_s:
            if not connection.poll(BEAT_S):
                silent_s += BEAT_S
            elif (found := connection.recv_bytes()) == _BEAT:
                silent_s = 0.0
            else:
                return found
            self._while_waiting()
        raise TimeoutError

    def close(self) -> str:
        """End the process; returns how it ended, in words."""
        if self._connection is None or self._process is None:
            return ""
        self._connection.close()  # which it takes as its end
        self._connection = None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._process.kill()  # amid a call that nobody waits for any more
        code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        limit = struct.pack("ll", math.ceil(self._silent_s), 0)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # it may hang amid a long message
            ours.setsockopt(socket.SOL_SOCKET, option, limit)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), str(os.getpid()), str(self._memory)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for the run, which stops where everything is saved
            )
        return Connection(ours.detach())


class OneByOne(Beside):
    """Works on documents one by one in a process beside this one, and counts those that it did not survive."""

    def __init__(self) -> None:
        super().__init__(_MEMORY)
        self._seen = self._lost = 0

    def of(self, where: str, function: Callable[..., T], *arguments: Any) -> T:
        """As `call`, twice before it raises Died: something else may have killed the process the first time.

        Raises UserError, which names the document by `where`, if this is one of too many.
        """
        self._seen += 1
        try:
            return self.call(function, *arguments)
        except Died:
            pass
        try:
            return self.call(function, *arguments)
        except Died as died:
            self._lost += 1
            if self._lost >= _MANY and self._lost > _SHARE * self._seen:
                found = f"{self._lost} of {self._seen} documents end the process that works on them ({died})"
                raise UserError(where, found, f"must be at most {_SHARE:.0%}: is a library broken?") from None
            raise


def pickled(error: BaseException) -> bytes:
    """Return an error so that another process can raise it; one that cannot cross still says what happened."""
    try:
        pickle.loads(found := pickle.dumps(error))
    except Exception:
        return pickle.dumps(RunFailed(f"{type(error).__name__}: {error}"))
    return found


def _serve(connection: Connection) -> None:
    speaks, works = threading.Lock(), threading.Event()

    def beat() -> None:
        while works.wait():
            time.sleep(BEAT_S)
            with suppress(OSError), speaks:
                if works.is_set():
                    connection.send_bytes(_BEAT)

    threading.Thread(target=beat, daemon=True, name="pulse").start()
    while True:
        try:
            function, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        works.set()
        try:
            answer = pickle.dumps((True, function(*arguments)))
        except Exception as error:
            answer = pickle.dumps((False, pickle.loads(pickled(error))))
        with suppress(ConnectionError), speaks:
            works.clear()
            connection.send_bytes(answer)


def _main(descriptor: int, parent: int, memory: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before that was said
        return
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    _serve(Connection(descriptor))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
