"""Rows of the shard in progress, written within half a second, so that a killed run loses next to nothing.

One file a shard, append-only. A record is the length and the CRC-32 of its payload (little-endian), then the
payload: safetensors with the row numbers, scores, cosines and embeddings, the texts as JSON in its metadata.
A record that was cut off or damaged ends the file for the reader. The file is deleted once its shard is
complete.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = struct.Struct("<QI")
_SECONDS_BETWEEN_WRITES = 0.5
# What is held back is copied to be written: no more than so many rows, however fast they come.
_MOST_PENDING = 128


@dataclasses.dataclass
class Row:
    """What is known of one input; C classes, V views, D dimensions. The arrays are None unless it is ok."""

    path: str
    status: str
    error: str | None
    width: int
    height: int
    scores: np.ndarray | None = None  # [C] float32
    cosines: np.ndarray | None = None  # [V, C] float32
    embeddings: np.ndarray | None = None  # [V, D] float16


def journal_path(folder: Path, name: str) -> Path:
    """Where the journal of a shard lies."""
    return folder / f"journal-{name}.bin"


class Journal:
    """Appends rows of one shard; holds them back until half a second has passed since the last write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._pending: list[tuple[int, Row]] = []
        # The first rows are written at once: even a run that never lives long gets somewhere.
        self._last = -math.inf

    def append(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Add rows by their number in the shard; rows of one call are kept together or lost together."""
        self._pending += rows
        if len(self._pending) >= _MOST_PENDING or time.monotonic() - self._last >= _SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write everything now."""
        if self._pending:
            payload = _pack(self._pending)
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o644)
            # No fsync: what is written outlives the process, and waiting for the disk twice a second is not
            # worth the half shard that a power cut may cost.
            for part in (_HEADER.pack(len(payload), zlib.crc32(payload)), payload):
                left = memoryview(part)
                while left:
                    left = left[os.write(self._descriptor, left) :]
            self._pending = []
        self._last = time.monotonic()

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self._path.unlink(missing_ok=True)


def _pack(rows: Sequence[tuple[int, Row]]) -> bytes:
    from safetensors.numpy import save

    ok = [row for _, row in rows if row.status == "ok"]
    tensors = {"numbers": np.array([number for number, _ in rows], np.int64)}
    for key in ("scores", "cosines", "embeddings"):
        arrays = [getattr(row, key) for row in ok]
        if arrays and arrays[0] is not None:
            tensors[key] = np.stack(arrays)
    texts = [[row.path, row.status, row.error, row.width, row.height] for _, row in rows]
    payload: bytes = save(tensors, {"rows": json.dumps(texts, ensure_ascii=False)})
    return payload


def _unpack(payload: bytes) -> list[tuple[int, Row]]:
    from safetensors.numpy import load

    tensors = load(payload)
    # load() drops the metadata; it is in the JSON header, whose length comes first.
    (length,) = struct.unpack("<Q", payload[:8])
    texts: list[list[Any]] = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["rows"])
    rows = []
    at = 0
    for number, (path, status, error, width, height) in zip(tensors["numbers"], texts, strict=True):
        row = Row(path, status, error, width, height)
        if status == "ok":
            row.scores, row.cosines = tensors["scores"][at], tensors["cosines"][at]
            row.embeddings = tensors["embeddings"][at] if "embeddings" in tensors else None
            at += 1
        rows.append((int(number), row))
    return rows


def read_journal(path: Path) -> dict[int, Row]:
    """The rows of a journal by their number in the shard, and the file cut to its last sound record."""
    rows: dict[int, Row] = {}
    try:
        file = path.open("rb+")
    except FileNotFoundError:
        return rows
    with file:
        size = os.fstat(file.fileno()).st_size
        sound = 0
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            # Python takes as much memory as it is told to read, whatever there is.
            payload = file.read(length) if length <= size - file.tell() else b""
            if len(payload) != length or zlib.crc32(payload) != checksum:
                break
            try:
                rows.update(_unpack(payload))
            except Exception:
                break  # a sound checksum over a record of some other program: not ours to keep
            sound = file.tell()
        file.truncate(sound)
    return rows
