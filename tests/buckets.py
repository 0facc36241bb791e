"""A server that speaks as much of S3's and GCS' protocols as reading takes: lists of keys, sizes, ranges of bytes.

pyarrow opens a file of GCS without letting other threads run, so its server and it need a process each.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import fsspec.config
import pytest


@contextmanager
def bucket(name: str, objects: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the objects of one bucket, to this process and those that it starts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked, _, key = unquote(parts.path).lstrip("/").partition("/")
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            if asked == "storage":
                self.get_of_gcs(parts.path.removeprefix("/storage/v1/b/"), query)
                return
            if asked != name:
                self.answer(403, _error("AccessDenied", "you may not read this bucket"))
            elif key in objects:
                self.send_object(objects[key])
            elif "list-type" in query:
                self.answer(200, _listing(name, objects, query.get("prefix", ""), query.get("delimiter", "")))
            else:
                self.answer(200 if not key else 404, b"" if not key else _error("NoSuchKey", "no such key"))

        def get_of_gcs(self, path: str, query: Mapping[str, str]) -> None:
            asked, _, key = path.partition("/o")
            key = unquote(key.removeprefix("/"))
            if asked == name and key in objects and query.get("alt") == "media":
                self.send_object(objects[key])
                return
            prefix = query.get("prefix", "")
            found = [key] if key else [other for other in sorted(objects) if other.startswith(prefix)]
            if asked != name or (key and key not in objects):
                status, answer = (403, "you may not") if asked != name else (404, "no such object")
                self.answer(status, json.dumps({"error": {"code": status, "message": answer}}).encode())
                return
            dated = {"bucket": name, "updated": "2024-01-01T00:00:00.000Z", "generation": "1"}
            items = [{"name": other, "size": str(len(objects[other])), **dated} for other in found]
            self.answer(200, json.dumps(items[0] if key else {"items": items}).encode())

        def send_object(self, content: bytes) -> None:
            if (header := self.headers.get("Range")) is None:
                self.answer(200, content)
                return
            first, _, last = header.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)) + 1, len(content))
            span = f"bytes {first}-{end - 1}/{len(content)}"
            self.answer(206, content[int(first) : end], {"Content-Range": span})

        def answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            dated = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"0"', **(headers or {})}
            for header, value in {**dated, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("FSSPEC_GS_ANON", "true")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"anon": "true"})  # what is imported already has read its environment
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _listing(name: str, objects: Mapping[str, bytes], prefix: str, delimiter: str) -> bytes:
    rows, folders = [], set()
    for key in sorted(objects):
        if key.startswith(prefix):
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                dated = "<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
                rows.append(f"<Contents><Key>{escape(key)}</Key>{dated}<Size>{len(objects[key])}</Size></Contents>")
    rows += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
    head = f"<Name>{name}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
    count = f"<KeyCount>{len(rows)}</KeyCount>"
    return f'<?xml version="1.0"?><ListBucketResult>{head}{count}{"".join(rows)}</ListBucketResult>'.encode()


def _error(code: str, message: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
