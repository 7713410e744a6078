"""The label command with a small stand-in encoder: no weights, no torch, a photo in under a millisecond.

As a program it takes the arguments of ``python -m cdul_fast.label``; `StubEncoder` is also used in process.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast import encoders
from cdul_fast.cli import run_main

SIZE, DIM = 32, 16


class StubEncoder:
    """Projects each view's pixels onto fixed random directions; every view by itself."""

    backend, precision, pretrained = "stub", "fp32", "none"
    image_size, dim, batch, parallel_calls = SIZE, DIM, 20, 2
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    logit_scale, input_dtype = 100.0, "float32"

    def __init__(self, name: str = "stub", delay: float = 0.0, fails_on: float | None = None) -> None:
        self.name, self.fingerprint = name, f"stub-{name}"
        self._delay, self._fails_on = delay, fails_on
        rng = np.random.default_rng(7)
        self._weights = rng.standard_normal((3 * SIZE * SIZE, DIM)).astype(np.float32)
        self.closed = False

    def embed_images(self, pixels: Any) -> np.ndarray:
        if self._fails_on is not None and (np.asarray(pixels) == self._fails_on).all(axis=(1, 2, 3)).any():
            raise RuntimeError("the stub was told to fail on this photo")
        time.sleep(self._delay)
        flat = np.asarray(pixels, np.float32).reshape(len(pixels), -1)
        # One row at a time: a result must not depend on its neighbours in the batch.
        rows = np.stack([row @ self._weights for row in flat])
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        rows = np.stack([np.random.default_rng(s).standard_normal(DIM) for s in seeds]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def close(self) -> None:
        self.closed = True


def create_stub(model: str, pretrained: str = "", **settings: Any) -> StubEncoder:
    """Takes the place of `cdul_fast.encoders.create_encoder`; a model ``slow-0.05`` waits so long a call."""
    kind, _, delay = model.partition("-")
    return StubEncoder(model, delay=float(delay) if kind == "slow" else 0.0)


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs this file."""
    return [sys.executable, __file__, *map(str, arguments)]


if __name__ == "__main__":
    from cdul_fast.label import main

    encoders.create_encoder = create_stub
    sys.exit(run_main(main))
