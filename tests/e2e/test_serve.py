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

from framework.rewards.endpoint import NoAnswer
from framework.rewards.judge import Judge
from framework.stages.chat_model import ChatModel, ask_endpoint
from framework.stages.sampling import SamplingConfig
from framework.types import Prompt
from tests.contract.sample_rewards import response_of
from tests.distributed import free_port
from tests.e2e.runs import ROOT, Run
from tests.fake_sampling import FakeRun

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


def test_the_server_is_a_writer_and_a_judge(server: str, whole_run: Run, tmp_path: Path) -> None:
    asks_and_judges(f"{server}/v1", whole_run.name, tmp_path)


def asks_and_judges(url: str, model: str, tmp_path: Path) -> None:
    """A model of no skill is asked: what it says is kept, what it cannot say is counted, the rest is asked again."""
    chat = ChatModel(url=url, model=model, deadline_s=120.0, retries=1, max_failed_share=1.0)
    assert chat.look_ahead("stage.x.writer") == f"stage.x.writer: {model} answers at {url}"
    prompts = [Prompt(f"p{n}", f"Calculate {n} + 3.", "chain_sum", str(n + 3)) for n in range(4)]
    too_long = Prompt("long", "Calculate " + "1 + " * 2000 + "1.", "chain_sum", "2001")
    place, config = FakeRun(tmp_path), SamplingConfig(n=1, max_tokens=64)
    first = ask_endpoint(chat, [*prompts, too_long], config, place.runtime(), lambda text: True)
    assert too_long.id in {drop.id for drop in first.dropped}
    assert len(first.groups) + len(first.dropped) == 5
    assert first.tokens > 0
    again = ask_endpoint(chat, prompts, config, place.runtime(), lambda text: True)
    kept = {group.prompt.id: group.responses[0].text for group in again.groups}
    assert {group.prompt.id: group.responses[0].text for group in first.groups}.items() <= kept.items()
    judge = Judge(url=url, model=model, deadline_s=120.0, retries=1, max_tokens=16)
    judge.prepare()
    with pytest.raises(NoAnswer, match=r"in 2 tries; last: |refuses: HTTP 400"):
        judge(prompts[0], response_of("3"))
