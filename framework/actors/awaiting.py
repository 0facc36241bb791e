"""A word now and then of what a command waits for."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TextIO


def checking() -> AbstractContextManager[None]:
    """As `awaiting`, of what precedes a command's first word; on a terminal alone: an error stays a log's only line."""
    return awaiting("settings and what they name to be checked") if sys.stderr.isatty() else nullcontext()


@contextmanager
def awaiting(what: str, every_s: float = 4.5, stream: TextIO | None = None) -> Iterator[None]:
    """Say what a block waits for, whenever it has been silent for `every_s`."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(every_s):
            waited = format_seconds(time.monotonic() - begun)
            print(f"waiting for {what}: {waited}", file=stream or sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="awaiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def format_seconds(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
