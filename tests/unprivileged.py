"""Permissions for tests that may run as root, whom none of them stops."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_of_nobody() -> Iterator[Path]:
    """A folder that belongs to a user without rights, as whom the block runs."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)
