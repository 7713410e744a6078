"""Servers on 127.0.0.1 that stand in for the outside world."""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class FileServer:
    """Serves a folder over HTTP, ranges included, and misbehaves where it is told to.

    Attributes:
        url: Of the folder, without a slash at its end.
        hits: Requests by path.
        failures: Path -> how many more of its requests are answered with 503.
        delays: Path -> seconds before it is answered.
        ranges: Whether parts of files are sent.
        held: Paths that are answered only once ``released`` is set.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.hits: Counter[str] = Counter()
        self.failures: dict[str, int] = {}
        self.delays: dict[str, float] = {}
        self.ranges = True
        self.held: set[str] = set()
        self.released = threading.Event()

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(handler.path).lstrip("/")
        self.hits[path] += 1
        time.sleep(self.delays.get(path, 0.0))
        if path in self.held:
            self.released.wait(600)
        if self.failures.get(path, 0) > 0:
            self.failures[path] -= 1
            handler.send_error(503)
            return
        file = self.folder / path
        if not file.is_file():
            handler.send_error(404)
            return
        data = file.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if match and self.ranges:
            first, last = int(match[1]), int(match[2])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}")
            data = data[first : last + 1]
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body:
            with contextlib.suppress(OSError):
                handler.wfile.write(data)


@contextlib.contextmanager
def serve(folder: Path, certificate: Path | None = None) -> Iterator[FileServer]:
    """A `FileServer` of a folder for as long as the block runs.

    Args:
        folder: What it serves.
        certificate: A PEM file with a key and a certificate for localhost; with it the server speaks HTTPS.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            files.answer(self, body=True)

        def do_HEAD(self) -> None:
            files.answer(self, body=False)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that was killed

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    files = FileServer(folder, server.server_address[1])
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        files.url = files.url.replace("http://127.0.0.1", "https://localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
