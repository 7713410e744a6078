"""As much of Google's storage JSON API as gcsfs asks for, on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


class _Bucket(BaseHTTPRequestHandler):
    """One bucket whose objects are a dictionary; an object may be read, written, described and listed."""

    protocol_version = "HTTP/1.1"
    name: str
    objects: dict[str, bytes]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        match = re.fullmatch(r"(?:/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", url.path)
        if match is None or match[1] != self.name:
            self._answer(404, b"no such bucket")
        elif match[2] is None:
            self._answer(200, self._list(asked) if url.path.endswith("/o") else {"name": self.name})
        elif (key := unquote(match[2])) not in self.objects:
            self._answer(404, b"no such object")
        elif asked.get("alt") == "media":
            self._send(self.objects[key])
        else:
            self._answer(200, self._described(key))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match = re.search(r"boundary=\W?([^'\";]+)", self.headers.get("Content-Type", ""))
        if match is None:
            self._answer(501, b"uploads in one piece only")
            return
        parts = body.split(f"--{match[1]}".encode())[1:3]
        described, data = (
            part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2] for part in parts
        )
        key = json.loads(described)["name"]
        self.objects[key] = data.removesuffix(b"\n").removesuffix(b"\r")
        self._answer(200, self._described(key))

    def _list(self, asked: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        items, folders = [], set()
        for key in sorted(self.objects):
            rest = key.removeprefix(prefix)
            if key.startswith(prefix) and delimiter and delimiter in rest:
                folders.add(prefix + rest[: rest.index(delimiter) + 1])
            elif key.startswith(prefix):
                items.append(self._described(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _described(self, key: str) -> dict[str, Any]:
        size = str(len(self.objects[key]))
        return {"kind": "storage#object", "bucket": self.name, "name": key, "size": size}

    def _send(self, data: bytes) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._answer(200, data)
        else:
            self._answer(206, data[int(match[1]) : int(match[2]) + 1 if match[2] else None])

    def _answer(self, status: int, content: bytes | dict[str, Any]) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def gs_bucket(name: str, files: dict[str, bytes], patch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with these files for as long as the block runs; gives its URL."""
    gcsfs = pytest.importorskip("gcsfs")
    handler = type("Bucket", (_Bucket,), {"name": name, "objects": dict(files)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield f"gs://{name}"
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.shutdown()
        server.server_close()
