"""Code for the processes that work on texts beside a test's own: a patch of the test's process does not reach them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest


def patch_beside(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every process that is started from now on run `code` first."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(dedent(code))
    monkeypatch.syspath_prepend(str(directory))
