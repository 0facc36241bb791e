"""The peer's own virtual environment: what a benchmark compares with never enters the framework's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from framework.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "bench.txt"
ENVIRONMENT = ROOT / ".venv-bench"


def peer_python() -> Path:
    """Return the interpreter that has the peer, installing requirements/bench.txt first unless that is done.

    Raises UserError if pip can't install it.
    """
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / f"installed-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if stamp.is_file():
        return python
    print(f"Installing {LOCK.relative_to(ROOT)} into {ENVIRONMENT.name}, once; this takes some minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", LOCK]
    if subprocess.run(pip).returncode:
        allowed = f"pip must be able to install {LOCK.relative_to(ROOT)}; see requirements/README.md"
        raise UserError(str(ENVIRONMENT), "pip failed", allowed)
    stamp.touch()
    return python
