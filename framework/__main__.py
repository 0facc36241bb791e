"""The entry point of `framework` and `python -m framework`: signals are heard before anything large is imported."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run one command and end with its exit code; SIGTERM and Ctrl-C end it with 130 from its first moment on.

    So does the end of its terminal, unless whoever started it (`nohup`) wants it to outlive that.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    from framework.streams import open_missing

    open_missing()
    from framework.cli import entry

    entry()


def _end(*_: object) -> None:
    """End at once: nothing has begun, and an exception amid imports may be swallowed by what is being imported."""
    try:
        os.write(2, b"framework: interrupted; the same command resumes\n")
    finally:  # a terminal that has gone
        os._exit(130)


if __name__ == "__main__":
    main()
