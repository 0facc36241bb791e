"""`framework serve` on what a run has trained, asked over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import free_port
from tests.e2e.runs import ROOT, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def server(whole_run: Run, tmp_path: Path) -> Iterator[str]:
    """Base address of a server of the run's newest checkpoint."""
    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-m", "framework.cli", "serve", str(whole_run.directory), "--port", str(port)]
    with log.open("wb") as output:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _answers(f"{address}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _ask(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_run_is_served_behind_openais_protocol(server: str, whole_run: Run) -> None:
    with urllib.request.urlopen(f"{server}/v1/models", timeout=30) as reply:
        model = json.load(reply)["data"][0]["id"]
    assert model == whole_run.name
    answer = _ask(server, "/v1/completions", {"model": model, "prompt": "3 + 4 =", "max_tokens": 4, "ignore_eos": True})
    assert answer["usage"]["completion_tokens"] == 4
    messages = [{"role": "user", "content": "Calculate 3 + 4."}]
    chat = _ask(server, "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 4})
    assert chat["choices"][0]["message"]["role"] == "assistant"
