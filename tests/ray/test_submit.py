"""`framework submit` to a Ray cluster that runs by itself and wants a token, as a real one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed import free_port
from tests.unit.bad_input import TOY_CONF

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
}


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """Address of the dashboard of a Ray head of its own, ended by its process id."""
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: sockets lie below it
    ports = [f"--port={free_port()}", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=3", f"--temp-dir={folder}", *ports]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)  # `ray start --block` ends what it started
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def submit(dashboard: str, runs_dir: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [BIN / "framework", "submit", "job=toy", "run=sent", f"runs_dir={runs_dir}", "tracking=none"]
    command += ["--config-dir", TOY_CONF, "--address", dashboard]
    return subprocess.run(command, env=ENVIRONMENT | changes, capture_output=True, text=True, cwd=runs_dir)


@pytest.mark.timeout(240)
def test_a_submitted_job_runs_on_the_cluster(dashboard: str, tmp_path: Path) -> None:
    deadline = time.monotonic() + 150
    while (done := submit(dashboard, tmp_path)).returncode:  # the dashboard takes a while to come up
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)
    job = done.stdout.split()[0]
    status = [BIN / "ray", "job", "status", "--address", dashboard, job]
    while "succeeded" not in (said := subprocess.run(status, env=ENVIRONMENT, capture_output=True, text=True)).stdout:
        assert "failed" not in said.stdout, said.stdout
        assert time.monotonic() < deadline, said.stdout + said.stderr
        time.sleep(1)
    assert list(tmp_path.glob("sent/artifacts/*/*/manifest.json"))

    refused = submit(dashboard, tmp_path, RAY_AUTH_TOKEN="f" * 64)
    assert refused.returncode == 2
    assert refused.stderr.startswith("framework: RAY_AUTH_TOKEN")
    assert "ffff" not in refused.stderr
