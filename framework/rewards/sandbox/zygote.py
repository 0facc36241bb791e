"""The process that forks programs: it has the interpreter loaded, is shut in itself, and never sees what they read.

A program is a copy of this process, so nothing secret may ever be in its memory: source, input and tests come as
descriptors that only the copy reads, and output goes straight to whoever asked. It ends when its control socket is
closed, and takes every program along.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Sequence

from framework.rewards.sandbox import kernel
from framework.rewards.sandbox.confine import Level, Library, Limits, best_level, user_number
from framework.rewards.sandbox.program import run_functions, run_script, run_tests

KINDS = {"script": run_script, "functions": run_functions, "tests": run_tests}
MAX_DESCRIPTORS = 8
_LOOK_S = 0.1  # between two looks at the size of a private folder
# What most programs import; loaded once, and there also where a program may not read the folder of its library.
_USUAL = (
    *("array", "bisect", "collections", "cmath", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
    *("functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "math", "numbers", "operator", "queue"),
    *("random", "re", "statistics", "string", "struct", "textwrap", "threading", "time", "traceback", "typing"),
    *("atexit", "unicodedata"),
)


def main(control_fd: int, levels: Sequence[str], packages: Sequence[str]) -> None:
    """Shut this process in, say how well, then fork and watch programs until the control socket is closed."""
    control = socket.socket(fileno=control_fd)
    try:
        library = Library.of(packages)
        for name in (*_USUAL, *packages):
            importlib.import_module(name)
        level, reasons = best_level(library, levels)
        kernel.hide_memory()
    except (OSError, ImportError) as error:
        control.send(json.dumps({"fatal": str(error)}).encode())
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "framework"]:
        del sys.modules[name]
    sys.path[:] = library.path
    sys.argv[:] = [""]
    control.send(json.dumps({"level": level.name, "reasons": reasons}).encode())
    try:
        _serve(control, level)
    finally:
        level.close()


def _serve(control: socket.socket, level: Level) -> None:
    running: dict[int, int] = {}  # process id -> the descriptor that tells when it ends; -1: the kernel gives none
    places: dict[int, int] = {}  # process id -> its place among those that run
    most_bytes = 0
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        wait_s = _LOOK_S if -1 not in running.values() else _LOOK_S / 20
        for descriptor, _ in poll.poll(1000 * wait_s if running else None):
            if descriptor != control.fileno():
                continue
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, MAX_DESCRIPTORS)
            if not message:
                _end(running)
                return
            order = json.loads(message)
            if "kill" in order:
                _end({order["kill"]} & running.keys())
                continue
            limits = Limits(**order["limits"])
            most_bytes = limits.files_mb << 20
            place = min({0, 1, 2, 3} - set(places.values()))
            pid, reason = _start(level, limits, place, order["kind"], descriptors)
            for received in descriptors:
                os.close(received)
            if pid:
                running[pid], places[pid] = _watch(pid), place
                if running[pid] >= 0:
                    poll.register(running[pid], select.POLLIN)
            control.send(json.dumps({"started": pid, "error": reason}).encode())
        if running and level.used_bytes() > most_bytes:
            _end(running)
        for pid in list(running):
            found, status, usage = os.wait4(pid, os.WNOHANG)
            if found:
                if (watch := running.pop(pid)) >= 0:
                    poll.unregister(watch)
                    os.close(watch)
                del places[pid]
                if not running:
                    level.clean()
                used = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}
                control.send(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status), **used}).encode())


def _watch(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _end(pids: Iterable[int]) -> None:
    for pid in pids:  # none of them has been waited for, so the number is still theirs
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _start(level: Level, limits: Limits, place: int, kind: str, descriptors: Sequence[int]) -> tuple[int, str]:
    """Fork a program and shut it in; returns its process id, or 0 and why that failed."""
    ours, theirs = os.pipe()
    user = user_number(place)
    pid = level.fork()
    if pid == 0:
        try:
            _arrange(descriptors, theirs)
            level.confine(limits, user)
            if kind == "tests":
                kernel.hide_memory()
        except BaseException as error:
            os.write(len(descriptors), f"{type(error).__name__}: {error}".encode()[:500] or b"failed")
            os._exit(1)
        os.closerange(len(descriptors), 4096)  # from here on nothing is said to this process's parent
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            KINDS[kind]()
        finally:
            os._exit(1)  # whatever it raises, a program never comes back to this process's own work
    os.close(theirs)
    reason = b""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        block = os.read(ours, 4096)
        if not block:
            break
        reason += block
    os.close(ours)
    if reason:
        os.waitpid(pid, 0)
        return 0, reason.decode(errors="replace")
    return pid, ""


def _arrange(descriptors: Sequence[int], last: int) -> None:
    """Make `descriptors` 0, 1, 2, … and `last` the one after them; close all others."""
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 200) for descriptor in (*descriptors, last)]
    for wanted, descriptor in enumerate(moved):
        os.dup2(descriptor, wanted, inheritable=wanted < 3)
    os.closerange(len(moved), kernel.KEPT_DESCRIPTOR)
