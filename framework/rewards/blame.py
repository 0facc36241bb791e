"""Finds the line that a reward's author has to look at."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

_LIBRARIES = tuple({str(Path(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN = tuple(str(Path(__file__).with_name(name)) for name in ("base.py", "child.py", "blame.py"))
_DUMPED = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in ')


def place_of_error(error: BaseException) -> str:
    """Return "file:line" of the innermost frame of an error that is no library's; an empty string if there is none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    return _innermost((frame.filename, frame.lineno or 0) for frame in reversed(frames))


def error_text(error: BaseException) -> str:
    """Return an error's class and what it says, in one line; anyone's class may fail to say it."""
    try:
        text = " ".join(str(error).split())
    except Exception as failed:
        text = f"(its text cannot be had: {type(failed).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_of_dump(dump: str) -> str:
    """Return the same of a stack as `faulthandler` dumps it: innermost frame first."""
    return _innermost((match["file"], int(match["line"])) for match in _DUMPED.finditer(dump))


def _innermost(frames: Iterable[tuple[str, int]]) -> str:
    for file, line in frames:
        is_library = any(Path(file).is_relative_to(folder) for folder in _LIBRARIES) or "site-packages" in file
        if not is_library and file not in _OWN and not file.startswith("<"):
            return f"{file}:{line}"
    return ""
