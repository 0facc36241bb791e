"""The view of a run on wandb: which charts it has, what its server is sent, and that a run does without it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from framework.observe.wandb_workspace import Workspace, sections

pytest.importorskip("wandb_workspaces", reason="the environment is older than the lock")
NAMES = {"pretrain": {"train/loss", "own/number"}, "grpo": {"reward/mean", "reward/accuracy", "train/grad_norm"}}


class FakeServer(BaseHTTPRequestHandler):
    """Answers wandb's GraphQL for views and keeps what it was sent."""

    sent: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "upsertView" in asked["query"]:
            self.sent.append(asked["variables"])
            view = {"id": asked["variables"].get("id", "new"), "name": asked["variables"]["name"]}
            data: dict[str, Any] = {"upsertView": {"view": view, "inserted": True}}
        else:  # who holds the key
            data = {"viewer": {"id": "me", "entity": "team", "username": "me", "flags": "{}"}}
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    FakeServer.sent = []
    found = HTTPServer(("127.0.0.1", 0), FakeServer)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield FakeServer.sent
    found.shutdown()
    thread.join()
    found.server_close()


def test_charts_stand_by_stage_and_by_what_they_tell() -> None:
    found = {section.name: [panel.title for panel in section.panels] for section in sections(NAMES)}
    assert found == {
        "pretrain: what is learned": ["Loss"],
        "grpo: what is learned": ["Reward"],
        "grpo: how stable it is": ["Gradient norm"],
    }


def test_a_later_process_changes_the_same_view(tmp_path: Path, server: list[dict[str, Any]]) -> None:
    for _ in range(2):
        Workspace("team", "project", "abc", tmp_path / "workspace.json").save(NAMES)
    first, second = server
    assert (first["entityName"], first["projectName"], first["displayName"]) == ("team", "project", "run abc")
    assert "id" not in first
    assert (second["id"], second["name"]) == ("new", first["name"])
    panels = json.loads(first["spec"])["section"]["panelBankConfig"]["sections"][1]["panels"]
    assert panels[0]["config"]["metricRegex"] == "^grpo/(reward/mean|reward/.*)$"


def test_a_server_that_refuses_is_said_once_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Workspace, "save", lambda *_: (_ for _ in ()).throw(PermissionError("no views\nfor you")))
    with caplog.at_level(logging.WARNING):
        space = Workspace("team", "project", "abc", tmp_path / "workspace.json")
        for step in range(3):
            space.recorded("grpo", {f"number/{step}"})
        space.thread.join(5)
    assert [record.getMessage() for record in caplog.records] == [
        "no wandb workspace (PermissionError: no views for you): wandb's own panels show the numbers"
    ]
