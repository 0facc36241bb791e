"""What a disk refuses, in one line: it is the user's to solve, and the same command resumes the run."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.errors import UserError

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a file is in its way",
    errno.EIO: "the disk fails (input/output error)",
    errno.ESTALE: "the file server has lost the file",
    errno.ENOTCONN: "the file system is not there any more",
    errno.EFBIG: "the file is too large for the file system",
}
# safetensors, torch's writer and shutil keep only the text of an OSError, torch and numpy of a short write not that
_TELLS_OF_FILES = re.compile(
    r"\(os error |write\(\): |strerror: |\[Errno |"
    r"(inline_container.*(?:unexpected pos|failed writ)|requested and \d+ wri|Not enough free space)"
)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into a UserError; what is finished stays finished."""
    try:
        yield
    except Exception as error:
        user_error = as_disk_error(error, where)
        if user_error is None:
            raise
        raise user_error from error


def as_disk_error(error: BaseException, where: Path) -> UserError | None:
    """Return the UserError for a write that the user's disk is to blame for, else None."""
    number = error.errno if isinstance(error, OSError) else None
    place, text = str(getattr(error, "filename", None) or where), str(error)
    if number is None and (told := _TELLS_OF_FILES.search(text)):
        short_write = errno.ENOSPC if told[1] else None
        number = next((known for known in _DISK_ERRORS if os.strerror(known) in text), short_write)
    if number not in _DISK_ERRORS:
        return None
    return UserError(place, _DISK_ERRORS[number], "must be writable and have room; the same command resumes the run")
