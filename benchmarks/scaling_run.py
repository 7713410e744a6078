"""One labelling run with a stub encoder in a process of its own: prints seconds and peak memory as JSON.

``python -m benchmarks.scaling_run FOLDER OUT [--classes N] [--grid N] [--threads N]``
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdul_fast import encoders, label_images
from cdul_fast.config import LabelConfig


class StubEncoder:
    """Costs next to nothing: a fixed random projection of every view's mean colours."""

    name = "stub"
    pretrained = "none"
    backend = "stub"
    precision = "fp32"
    image_size = 32
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    logit_scale = 100.0
    dim = 64
    input_dtype = "float32"
    batch = 40
    fingerprint = "stub-0"

    def __init__(self) -> None:
        self._projection = np.random.default_rng(0).standard_normal((3, self.dim)).astype(np.float32)

    def embed_images(self, pixels: object) -> np.ndarray:
        """float32 [n, D], L2-normalised."""
        return _unit(np.asarray(pixels)[:, :, ::8, ::8].mean(axis=(2, 3)) @ self._projection)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, D], L2-normalised."""
        seeds = (np.random.default_rng(len(text) * 7919 + i) for i, text in enumerate(texts))
        return _unit(np.stack([seed.standard_normal(self.dim) for seed in seeds]).astype(np.float32))

    def close(self) -> None:
        """Nothing is held."""


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def main() -> None:
    """Runs once and prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    names = arguments.out.with_suffix(".txt")
    names.write_text("".join(f"class {i}\n" for i in range(arguments.classes)))
    config = LabelConfig(
        source=str(arguments.folder), out=str(arguments.out), classes=str(names), grid=arguments.grid,
        threads=arguments.threads, quiet=True, overwrite=True, report=False,
    )  # fmt: skip
    encoders.create_encoder = lambda *_, **__: StubEncoder()
    start = time.perf_counter()
    label_images(config)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_memory_mib": peak}))


if __name__ == "__main__":
    main()
