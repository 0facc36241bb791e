"""An OpenAI-compatible endpoint that answers well, badly, late or not at all: a real HTTP server for tests."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", str], None]


class Handler(BaseHTTPRequestHandler):
    """Says what the test wants said."""

    def do_GET(self) -> None:
        self.say(200, {"data": [{"id": "judge"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.asked.append((body, self.headers.get("Authorization")))
        answer = server.answers[min(len(server.asked), len(server.answers)) - 1]
        with contextlib.suppress(ConnectionError):
            answer(self, body["messages"][-1]["content"])

    def say(self, status: int, content: object) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[dict[str, Any], str | None]] = []
        self.answers: list[Answer] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that runs inside."""
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield found
        finally:
            found.over.set()
            found.shutdown()
            thread.join()


def says(text: object, reason: str = "stop") -> Answer:
    choice = {"message": {"content": text}, "finish_reason": reason}
    return lambda handler, _: handler.say(200, {"choices": [choice], "usage": {"total_tokens": 7}})


def status(code: int) -> Answer:
    return lambda handler, _: handler.say(code, {"error": "no"})


def raw(data: bytes) -> Answer:
    return lambda handler, _: handler.say(200, data)


def never(handler: Handler, _: str) -> None:
    handler.server.over.wait(30)  # type: ignore[attr-defined]


def drips(handler: Handler, _: str) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(b" ")


def half(handler: Handler, _: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')


def hangs_up(handler: Handler, _: str) -> None:
    handler.connection.close()
