"""An S3-compatible server on 127.0.0.1, and the settings by which clients find it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def s3_bucket(name: str, files: dict[str, bytes], patch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with these files for as long as the block runs; gives its URL."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for variable, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        patch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        system = s3fs.S3FileSystem()
        system.mkdir(name)
        for path, data in files.items():
            system.pipe_file(f"{name}/{path}", data)
        yield f"s3://{name}"
        # The server's contents live as long as the process.
        system.rm(name, recursive=True)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def folder_files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
