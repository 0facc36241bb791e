"""Standard streams of a command: there, whoever started it had closed them, and of a run never a reason to end."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import NoReturn

SAID_S = 2.0  # that a last line may take


def open_missing() -> None:
    """Give standard streams that were closed at the start (`2>&-`, some supervisors) nothing to read or write.

    Otherwise the next file that is opened would be standard error, and every word that is said would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            found = os.open(os.devnull, os.O_RDWR)
            if found != number:
                os.dup2(found, number)
                os.close(found)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115 - it is never closed
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def leave(text: str, code: int) -> NoReturn:
    """End this process at once with one line; nobody is waited for, a reader that has stopped reading neither."""
    says = threading.Thread(target=_say, args=(f"framework: {text}\n",), daemon=True)
    says.start()
    says.join(SAID_S)
    os._exit(code)


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


class _Unread(io.FileIO):
    """A stream whose reader may go (`| head`, a closed terminal, a full disk): then what is written is lost."""

    def write(self, data: object, /) -> int:
        """Write, or drop it."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return len(memoryview(data))  # type: ignore[arg-type]


def outlive_readers(*names: str) -> None:
    """Let these streams fail nobody from now on: hours of training are not to end with their reader."""
    for name in names:
        number, before = {"stdout": 1, "stderr": 2}[name], getattr(sys, name)
        before.flush()
        raw = _Unread(number, "w", closefd=False)
        more = {"encoding": before.encoding, "errors": before.errors, "line_buffering": True}
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **more))
