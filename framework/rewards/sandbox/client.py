"""The sandbox as its user sees it: run a program on an input, or let tests call a program's functions."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from framework.bounds import PositiveInt, Seconds, bounded
from framework.errors import UserError
from framework.rewards.sandbox.confine import LEVELS

LevelName = Literal["namespaces", "filters", "limits"]
_ROOT = str(Path(__file__).resolve().parents[3])
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from framework.rewards.sandbox.zygote import main; "
_BOOT += "main(int(sys.argv[2]), sys.argv[3].split(), sys.argv[4].split())"
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
# A reply takes milliseconds. Two tries and a new start must fit into a response's time limit (10 s by default): what
# hangs there counts as a wrong answer, and it is not the answer's fault.
_START_S, _REPLY_S = 60.0, 3.0
_LOOK_S = 0.5  # between two looks at the process that watches programs
_KEPT_ERRORS = 8192  # bytes of standard error


class SandboxBroken(RuntimeError):
    """The sandbox itself failed, so that nothing can be said of the program."""


@dataclass(frozen=True)
@bounded
class LimitsConfig:
    """What one run of a program may use. Competitions allow a few seconds and 256 MB or more."""

    cpu_s: PositiveInt = 4
    wall_s: Seconds = 8.0
    memory_mb: PositiveInt = 1024  # address space of all its processes together, a fresh interpreter's 30 included
    files_mb: PositiveInt = 16  # in its private folder
    output_kb: PositiveInt = 4096
    threads: PositiveInt = 32
    processes: PositiveInt = 1  # more than one only with namespaces


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it wrote."""

    code: int  # exit code; -N: killed by signal N
    reason: str  # empty if it ended by itself with exit code 0
    output: bytes
    errors: str  # the beginning of its standard error
    seconds: float
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether tests passed; `why` not, in words for people."""

    passed: bool
    why: str = ""


class Sandbox:
    """Programs one at a time, each in a fork of one prepared process. For one thread of one process.

    `least` is the weakest level that will do: see `framework.rewards.sandbox.confine`. Raises UserError, which says
    what the kernel refuses, where it is not reached, or a package is not installed.
    """

    def __init__(
        self, least: LevelName = "filters", packages: Sequence[str] = (), levels: Sequence[str] = LEVELS
    ) -> None:
        allowed = [name for name in LEVELS[: LEVELS.index(least) + 1] if name in levels]
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [_ROOT, str(theirs.fileno()), " ".join(allowed), " ".join(packages)]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", *(() if packages else ("-S",)), "-X", "utf8", "-c", _BOOT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_ENVIRONMENT
                | {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ},
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._over: dict[int, dict[str, Any]] = {}  # process id -> how it ended
        try:
            first = self._next(time.monotonic() + _START_S)
        except (TimeoutError, EOFError):
            self.close()
            raise SandboxBroken("its process did not start") from None
        if "fatal" in first:
            self.close()
            raise UserError("least", least, f"no sandbox of that strength here: {first['fatal']}")
        self.level: str = first["level"]
        self.reasons: tuple[str, ...] = tuple(first["reasons"])  # why not the levels above

    def run(self, source: str, given: bytes, limits: LimitsConfig) -> Ended:
        """Run a program as a script with `given` on its standard input."""
        with _Descriptors() as held:
            text, program, output, errors = held.file(given), held.file(source.encode()), held.pipe(), held.pipe()
            pid = self._start("script", limits, [text, output[1], errors[1], program])
            held.close(output[1], errors[1])
            return self._watch(pid, output[0], errors[0], limits)

    def judge(self, source: str, tests: Mapping[str, Any], limits: LimitsConfig) -> Verdict:
        """Let tests call a program's functions: see `framework.rewards.sandbox.program` for what they are."""
        began = time.monotonic()
        with _Descriptors() as held, open(os.devnull, "rb+", buffering=0) as nothing:
            program, judge, null = held.file(source.encode()), held.file(json.dumps(tests).encode()), nothing.fileno()
            calls, replies, verdict, errors = (held.pipe() for _ in range(4))
            first = self._start("functions", limits, [null, null, errors[1], program, calls[0], replies[1]])
            second = self._start("tests", limits, [null, null, null, judge, replies[0], calls[1], verdict[1]])
            held.close(*calls, *replies, verdict[1], errors[1])
            told = self._watch(second, verdict[0], errors[0], limits)
            self._kill(first)
            ended = self._wait(first)
        if told.reason:
            why = f"the tests did not end: {told.reason}"
            return Verdict(False, why if time.monotonic() - began < limits.wall_s else f"more than {limits.wall_s:g} s")
        found = json.loads(told.output)
        why = str(found["why"])
        if why.startswith(("EOFError", "BrokenPipeError")):
            last = told.errors.strip().rpartition("\n")[2]
            why = f"the program ended: {_ending(ended['status'])}" + (f": {last}" if last else "")
        return Verdict(found["passed"] is True, why)

    def close(self, wait_s: float = 10.0) -> None:
        """End the sandbox's process and every program; `wait_s`: to let it empty its private folder."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=wait_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the process that forks the programs."""
        return self._process.pid

    def _start(self, kind: str, limits: LimitsConfig, descriptors: Sequence[int]) -> int:
        order = {
            "cpu_s": limits.cpu_s,
            "memory_mb": limits.memory_mb,
            "files_mb": limits.files_mb,
            "threads": limits.threads,
            "processes": limits.processes,
        }
        message = json.dumps({"kind": kind, "limits": order}).encode()
        try:
            socket.send_fds(self._control, [message], list(descriptors))
            deadline = time.monotonic() + _REPLY_S
            while "started" not in (answer := self._hear(deadline)):
                pass
        except OSError as error:
            raise SandboxBroken(f"its process is gone: {error}") from None
        if answer["error"]:
            raise SandboxBroken(str(answer["error"]))
        return int(answer["started"])

    def _watch(self, pid: int, output: int, errors: int, limits: LimitsConfig) -> Ended:
        """Read what a program writes until it ends, or ends its time."""
        began = time.monotonic()
        deadline = began + limits.wall_s
        most, reason = limits.output_kb << 10, ""
        kept: dict[int, bytearray] = {output: bytearray(), errors: bytearray()}
        poll = select.poll()
        for descriptor in (output, errors, self._control.fileno()):
            poll.register(descriptor, select.POLLIN)
        ended, stood = self._over.pop(pid, None), 0
        while ended is None:
            left = max(0.0, deadline - time.monotonic())
            ready = poll.poll(1000 * min(left, _LOOK_S))
            if not ready and left > _LOOK_S:
                stood = stood + 1 if self._stands_still() else 0
                if stood == 2:
                    raise SandboxBroken("its process is stopped")
                continue
            if not ready and not reason:
                reason = f"more than {limits.wall_s:g} s"
                self._kill(pid)
                deadline = time.monotonic() + _REPLY_S
            elif not ready:
                raise SandboxBroken("a program outlives its end")
            for descriptor, _ in ready:
                if descriptor == self._control.fileno():
                    self._hear(deadline)
                    ended = self._over.pop(pid, None)
                elif not _read_some(descriptor, kept[descriptor], most if descriptor == output else _KEPT_ERRORS):
                    poll.unregister(descriptor)
            if len(kept[output]) > most and not reason:
                reason = f"more than {limits.output_kb} KB of output"
                self._kill(pid)
                deadline = time.monotonic() + _REPLY_S
        for descriptor in (output, errors):  # what is left in the pipes of a program that has ended
            os.set_blocking(descriptor, False)
            while _read_some(descriptor, kept[descriptor], most if descriptor == output else _KEPT_ERRORS):
                pass
        if len(kept[output]) > most and not reason:
            reason = f"more than {limits.output_kb} KB of output"
        code = int(ended["status"])
        if not reason and code == -signal.SIGKILL:
            reason = (
                f"more than {limits.cpu_s} s of processor time" if ended["cpu_s"] > 0.9 * limits.cpu_s else "killed"
            )
        text = bytes(kept[errors]).decode(errors="replace")
        reason = reason or (_ending(code) if code else "")
        return Ended(code, reason, bytes(kept[output]), text, time.monotonic() - began, float(ended["peak_mb"]))

    def _stands_still(self) -> bool:
        """Whether the process that forks and watches is stopped, or waits for a kernel that does not answer."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self._process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in b"TtD"
        return False

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            self._control.send(json.dumps({"kill": pid}).encode())

    def _wait(self, pid: int) -> dict[str, Any]:
        deadline = time.monotonic() + _REPLY_S
        while pid not in self._over:
            self._hear(deadline)
        return self._over.pop(pid)

    def _hear(self, deadline: float) -> dict[str, Any]:
        """Return the next message, and remember how a program ended. Raises SandboxBroken if none comes."""
        try:
            message = self._next(deadline)
        except (OSError, EOFError) as error:
            raise SandboxBroken(f"its process is gone: {error}") from None
        if "ended" in message:
            self._over[message["ended"]] = message
        return message

    def _next(self, deadline: float) -> dict[str, Any]:
        """Return the next message of the sandbox's process; raises TimeoutError or EOFError."""
        self._control.settimeout(max(0.001, deadline - time.monotonic()))
        data = self._control.recv(1 << 16)
        if not data:
            raise EOFError("it has ended")
        message: dict[str, Any] = json.loads(data)
        return message


class _Descriptors:
    """Files in memory and pipes, each closed once: with the block, or before."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def file(self, data: bytes) -> int:
        """A file in memory that nobody can change or let grow, open at its beginning."""
        descriptor = os.memfd_create("given", os.MFD_ALLOW_SEALING)
        self._open.add(descriptor)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
        return descriptor

    def pipe(self) -> tuple[int, int]:
        """The end to read from, the end to write to."""
        ends = os.pipe()
        self._open.update(ends)
        return ends

    def close(self, *descriptors: int) -> None:
        """Close some before the rest."""
        for descriptor in descriptors:
            self._open.remove(descriptor)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(*list(self._open))


def _read_some(descriptor: int, kept: bytearray, most: int) -> bool:
    """Read once; keep at most a byte more than `most`. False at the end."""
    try:
        block = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return False
    kept += block[: max(0, most + 1 - len(kept))]
    return bool(block)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
