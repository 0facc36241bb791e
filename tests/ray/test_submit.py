"""`framework submit` and `run` on a Ray cluster that runs by itself and wants a token, as a real one."""

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
def head() -> Iterator[tuple[str, str]]:
    """Addresses of a Ray head of its own and of its dashboard; ended by its process id."""
    gcs, port, folder = free_port(), free_port(), Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # short: for sockets
    ports = [f"--port={gcs}", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=3", f"--temp-dir={folder}", *ports]
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)  # `ray start --block` ends what it started
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


# A stage in a module that lies beside the user alone: the head has neither it nor the yaml file that names it.
MINE = """
from dataclasses import dataclass
from tests.unit import toy_graph

@dataclass(frozen=True)
class Write(toy_graph.Write):
    word: str = "sent along"
"""


def submit(dashboard: str, here: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, with a plug-in and yaml files beside it."""
    (here / "my_stage.py").write_text(MINE)
    shutil.copytree(TOY_CONF, here / "mine", dirs_exist_ok=True)
    (here / "mine" / "stage" / "my_write.yaml").write_text("_target_: my_stage.Write")
    command = [BIN / "framework", "submit", "job=toy", "run=sent", f"runs_dir={here / 'runs'}", "tracking=none"]
    command += [
        "plugins=[tests,my_stage]",
        "stage@stage.write=my_write",
        "--config-dir",
        "mine",
        "--address",
        dashboard,
    ]
    return subprocess.run(command, env=ENVIRONMENT | changes, capture_output=True, text=True, cwd=here)


@pytest.mark.timeout(240)
def test_a_submitted_job_runs_on_the_cluster(head: tuple[str, str], tmp_path: Path) -> None:
    _, dashboard = head
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
    (written,) = tmp_path.glob("runs/sent/artifacts/write-*/text/train-00000.jsonl")
    assert "sent along" in written.read_text()

    refused = submit(dashboard, tmp_path, RAY_AUTH_TOKEN="f" * 64)
    assert refused.returncode == 2
    assert refused.stderr.startswith("framework: RAY_AUTH_TOKEN")
    assert "ffff" not in refused.stderr


@pytest.mark.timeout(240)
def test_a_run_joins_a_head_with_its_token_and_is_told_of_a_wrong_one(head: tuple[str, str], tmp_path: Path) -> None:
    command = [BIN / "framework", "run", "job=toy", f"runs_dir={tmp_path / 'runs'}", "tracking=none"]
    command += ["--config-dir", TOY_CONF]

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in (ENVIRONMENT | {"RAY_ADDRESS": head[0], **changes}).items() if v}
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=200)

    for changes in ({"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}):
        refused = run(**changes)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr
        assert refused.stderr.startswith("framework: RAY_AUTH_TOKEN: got 'RAY_AUTH_MODE")
    joined = run()
    assert joined.returncode == 0, joined.stderr
    assert list(tmp_path.glob("runs/toy/artifacts/*/*/manifest.json"))
