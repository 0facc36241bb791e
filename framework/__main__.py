"""The entry point of `framework` and `python -m framework`: signals are heard before anything large is imported."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run one command and end with its exit code; SIGTERM and Ctrl-C end it with 130 from its first moment on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    from framework.cli import entry

    entry()


def _end(*_: object) -> None:
    """End at once: nothing has begun, and an exception amid imports may be swallowed by what is being imported."""
    os.write(2, b"framework: interrupted; the same command resumes\n")
    os._exit(130)


if __name__ == "__main__":
    main()
