"""One writer a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cdul_fast.data.paths import one_line, show_path
from cdul_fast.data.sinks import part_prefix
from cdul_fast.errors import CdulError


@contextlib.contextmanager
def locked(folder: Path, part: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold the lock of a run directory, or of one part of it; the system frees it when the process ends.

    Raises:
        CdulError: Another process holds it, or the folder cannot be written to.
    """
    name = f".lock-{part_prefix(part)}".rstrip("-")
    with _open(folder / name) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = one_line(os.pread(descriptor, 32, 0).decode("ascii", "replace").strip())
            whose = f" (process {holder})" if holder else ""
            raise CdulError(f"another run is writing to {show_path(folder)}{whose}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield


@contextlib.contextmanager
def waiting_for(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock that parts of one run share for a moment; waits for it."""
    with _open(folder / f".lock-{name}") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise CdulError(f"cannot write to {show_path(path.parent)}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        # A process forked meanwhile (OpenVINO's telemetry does that) shares the lock and would keep it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
