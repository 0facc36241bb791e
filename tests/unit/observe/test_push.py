"""`framework push` as a process, against a hub of our own that answers over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.contract.families import write_checkpoint
from tests.distributed import free_port
from tests.unit.observe.synthetic import evaluate, write_run

ROOT = Path(__file__).parents[3]
TOKEN = "hf_may_write"


class Hub(ThreadingHTTPServer):
    """Keeps what is committed to it; large files go the LFS way, as on the real one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.branches: list[str] = []
        self.files: dict[tuple[str, str], bytes] = {}  # (revision, path)
        self.blobs: dict[str, bytes] = {}
        self.refuse_commits = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(200, {})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = body
        self.answer(200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path.startswith("/api/repos/create"):
            found = json.loads(body)
            self.server.repositories[f"{found.get('organization')}/{found['name']}"] = found
            self.answer(200, {"url": f"{self.server.url}/{found.get('organization')}/{found['name']}"})
        elif "/branch/" in self.path:
            self.server.branches.append(self.path.rpartition("/")[2])
            self.answer(201, {})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith("safetensors") else "regular" for path in paths}
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self.answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.url}/blob/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path and self.server.refuse_commits:
            self.answer(507, {"error": "Storage limit reached"})
        elif "/commit/" in self.path:
            self.commit(self.path.partition("/commit/")[2].partition("?")[0], body)
        else:
            self.answer(200, {})

    def commit(self, revision: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.server.files[revision, value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[revision, value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.url}/me/tiny/commit/abc"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": "abc"})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "base"
    write_checkpoint("qwen3_tied", path)
    return path


def give(*words: str, endpoint: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(cwd / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    command = [sys.executable, "-m", "framework.cli", "push", *words]
    environment = inherited | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200)


def test_a_checkpoint_is_committed_whole_with_a_card(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    done = give(str(checkpoint), "me/tiny", "--private", "--revision", "first", endpoint=hub.url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/tiny/commit/abc"
    made = hub.repositories["me/tiny"]
    assert made.get("visibility") == "private" or made.get("private") is True
    assert hub.branches == ["first"]
    sent = {path: content for (revision, path), content in hub.files.items() if revision == "first"}
    assert sent.keys() == {file.name for file in checkpoint.iterdir()} | {"README.md"}
    for file in checkpoint.iterdir():
        assert hashlib.sha256(sent[file.name]).digest() == hashlib.sha256(file.read_bytes()).digest()
    card = sent["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "\n# tiny\n" in card
    assert "`qwen3` model" in card


def test_the_card_of_a_run_has_its_evaluations_and_stages(tmp_path: Path) -> None:
    from framework.graph.found import newest_of
    from framework.observe.model_card import card_of

    run_dir = tmp_path / "runs" / "mine"
    write_run(run_dir, steps=3)
    evaluate(run_dir, "rl", 0.5, {})
    path = newest_of(run_dir)
    (path / "config.json").write_text('{"model_type": "qwen3", "dtype": "bfloat16"}')
    card = card_of("mine", path, run_dir)
    row = next(line for line in card.splitlines() if line.startswith("| rl "))
    assert row.split("|")[2:5] == [" 192 ", " 16 ", " 50.0% ± 3.6 "]
    assert "## How it was made" in card
    assert any(line.startswith(f"- `{path.parent.name.rpartition('-')[0]}` (") for line in card.splitlines())


def test_what_stands_in_the_way_is_one_line(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    words, nowhere = (str(checkpoint), "me/tiny"), f"http://127.0.0.1:{free_port()}"
    for reason, done in (
        ("HF_TOKEN: got 'not set'; ", give(*words, endpoint=hub.url, cwd=tmp_path, HF_TOKEN="")),
        ("HF_TOKEN: got 'refused (401)'; ", give(*words, endpoint=hub.url, cwd=tmp_path, HF_TOKEN="hf_other")),
        (f"HF_ENDPOINT: got '{nowhere}'; the hub cannot be reached", give(*words, endpoint=nowhere, cwd=tmp_path)),
        ("HF_HUB_OFFLINE: got '1'; ", give(*words, endpoint=hub.url, cwd=tmp_path, HF_HUB_OFFLINE="1")),
        ("hub id: got 'tiny'; must be owner/name", give(str(checkpoint), "tiny", endpoint=hub.url, cwd=tmp_path)),
    ):
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert hub.files == {}


def test_a_commit_that_fails_is_said_to_have_left_nothing(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.refuse_commits = True
    done = give(str(checkpoint), "me/tiny", endpoint=hub.url, cwd=tmp_path)
    assert done.returncode == 1
    assert "pushing to me/tiny failed (507), nothing is committed: " in done.stderr.splitlines()[-1]
