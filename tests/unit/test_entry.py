"""The entry point: SIGTERM and Ctrl-C end a command with 130 and one line, whatever is being imported just then."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TERM = 1 << (signal.SIGTERM - 1)


def test_nothing_large_is_imported_before_signals_are_heard() -> None:
    code = (
        "import sys, framework.__main__; print(*(m for m in ('framework.cli', 'logging', 'torch') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def hears(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler for SIGTERM, by what the kernel says of it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & TERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_imports_is_130_and_one_line(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "framework", "plan", "job=r1_zero", f"runs_dir={tmp_path}/runs"]
    delays = (0.0, 0.05, 0.2, 0.6)  # seconds after it hears
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=-3, stderr=-1, text=True) for _ in delays]
    for process, delay in zip(processes, delays, strict=True):
        until = time.monotonic() + 60
        while not hears(process):
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(number)
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (130, "framework: interrupted; the same command resumes\n")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_is_being_imported_cannot_swallow_a_signal(command: str) -> None:
    code = (
        "import os, sys, framework.commands.running as running, framework.__main__\n"
        "def swallow(arguments):\n"
        "    try:\n"
        "        os.kill(os.getpid(), 15)\n"
        "    except BaseException:\n"
        "        return 0\n"
        f"running.{command}, sys.argv = swallow, ['framework', '{command}']\n"
        "framework.__main__.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "framework: interrupted; the same command resumes\n")
