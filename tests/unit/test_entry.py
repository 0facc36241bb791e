"""The entry point: SIGTERM and Ctrl-C end a command with 130 and one line, whatever is being imported just then."""

from __future__ import annotations

import os
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


SWALLOW = (
    "import os, sys, time, framework.cli as cli, framework.commands.{module} as commands, framework.__main__\n"
    "def swallow(arguments):\n"
    "    try:\n"
    "        os.kill(os.getpid(), 15)\n"
    "        time.sleep(60)\n"
    "    except BaseException:\n"
    "        time.sleep({goes_on})\n"
    "        return 0\n"
    "cli.UNWINDING_S, commands.{command}, sys.argv = 0.5, swallow, ['framework', {arguments}]\n"
    "framework.__main__.main()"
)


def ends(module: str, command: str, arguments: str, goes_on: float) -> tuple[int, str]:
    code = SWALLOW.format(module=module, command=command, arguments=arguments, goes_on=goes_on)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("module", "command", "arguments"),
    [
        ("running", "plan", "'plan'"),
        ("running", "run", "'run'"),
        ("telling", "score", "'score', 'file'"),
        ("telling", "lineage", "'lineage', 'run'"),
        ("telling", "keys", "'keys'"),
    ],
)
def test_what_is_being_imported_cannot_swallow_a_signal(module: str, command: str, arguments: str) -> None:
    assert ends(module, command, arguments, 0) == (130, "framework: interrupted; the same command resumes\n")


def test_a_command_that_swallows_a_signal_and_goes_on_is_ended() -> None:
    found = ends("models", "sample", "'sample'", 60)
    assert found == (130, "framework: interrupted; the same command resumes\n")


def test_a_command_that_has_undone_what_it_began_ends_by_itself() -> None:
    assert ends("models", "sample", "'sample'", 0) == (0, "")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>&-", ">&-"])
def test_closed_streams_are_nothing_to_write_to(closed: str, tmp_path: Path) -> None:
    """The next file that is opened would be standard error, or there would be none to ask whether it is a terminal."""
    code = "import sys, framework.__main__ as main, framework.cli as cli\n"
    code += "def entry():\n"
    code += "    print('said', flush=True)\n    print('told', file=sys.stderr, flush=True)\n"
    code += f"    open(r'{tmp_path}/file', 'w').write(f'{{sys.stderr.isatty()}} {{sys.stdout.fileno()}}')\n"
    code += "    sys.exit(0)\n"
    code += "cli.entry = entry\nmain.main()"
    done = subprocess.run(["bash", "-c", f'exec "{sys.executable}" -c "$0" {closed}', code], cwd=ROOT, timeout=120)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "False 1"


OUTLIVES = """
import os, sys
from framework.streams import outlive_readers
outlive_readers("stdout", "stderr")
for _ in range(3):
    print("to nobody", flush=True)
    print("to nobody", file=sys.stderr, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("gone", ["pipe", "full"])
def test_what_a_run_says_to_nobody_does_not_end_it(gone: str) -> None:
    read, write = os.pipe()
    os.close(read)
    target = write if gone == "pipe" else os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", OUTLIVES], cwd=ROOT, stdout=target, stderr=target, timeout=120)
    assert done.returncode == 0


def test_a_last_word_to_nobody_does_not_keep_a_command_from_its_end() -> None:
    """Else the interpreter is taken down with whatever threads engines have left."""
    code = SWALLOW.format(module="models", command="sample", arguments="'sample'", goes_on=0)
    code = code.replace("except BaseException:", "except ZeroDivisionError:")  # it unwinds
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=write, timeout=120)
    assert done.returncode == 130


def test_what_a_run_says_is_read() -> None:
    done = subprocess.run([sys.executable, "-c", OUTLIVES], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("to nobody\n" * 3,) * 2
