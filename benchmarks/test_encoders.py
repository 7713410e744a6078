"""Images a second of each encoder backend, random weights, both threads; how far each strays from fp32.

All contestants of a model are loaded at once, so that they can take turns: for RN50x64 that is some 10 GB.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.timing import Race, library_threads
from cdul_fast import encoders
from cdul_fast.data.sinks import release_unused_memory
from cdul_fast.encoders.base import inner_batch
from cdul_fast.encoders.source import find_model

MODELS = [
    pytest.param("RN50", 3, id="RN50"),
    pytest.param("ViT-B-32", 3, id="ViT-B-32"),
    pytest.param("RN50x64", 1, id="RN50x64"),  # a round takes a minute
]
THREADS = 2
SUBJECT = "OpenVINO bf16"
Embed = Callable[[], np.ndarray]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), MODELS)
def test_encoders(race: Race, name: str, count: int, model_cache: Path) -> None:
    def encoder(backend: str, precision: str, calibration: Any = None) -> Any:
        one = encoders.create_encoder(
            name, "none", backend=backend, precision=precision, threads=THREADS, cache_dir=model_cache,
            calibration=calibration,
        )  # fmt: skip
        one.release_texts()
        return one

    @functools.cache
    def reference() -> Any:
        return encoder("torch", "fp32")

    def tower() -> torch.nn.Module:
        return reference().image_tower().eval()  # the exporter would leave it in training mode otherwise

    size = find_model(name, "none", None).image_size
    batch = inner_batch(size) * THREADS  # what keeps all threads of ours busy; the others take any number
    views = torch.randn(max(8, batch), 3, size, size, generator=torch.Generator().manual_seed(0))
    pixels = views[:batch]

    def protocol(one: Any) -> Embed:
        ready = pixels.to(getattr(torch, one.input_dtype))
        return lambda: one.embed_images(ready)

    # Conversions first: they need the most memory, and give it back.
    builders: dict[str, Callable[[], Embed]] = {
        "OpenVINO fp32": lambda: protocol(encoder("openvino", "fp32")),
        "OpenVINO int8": lambda: protocol(encoder("openvino", "int8", views)),
        SUBJECT: lambda: protocol(encoder("openvino", "bf16")),
        "onnxruntime fp32": lambda: _onnxruntime(tower(), pixels, model_cache / "tower.onnx"),
        "torch bf16": lambda: protocol(encoder("torch", "bf16")),
        "torch fp32": lambda: protocol(reference()),
        "torch.compile fp32": lambda: _compiled(tower(), pixels),
    }
    calls: dict[str, Embed] = {}
    rows: dict[str, np.ndarray] = {}
    ready_after: dict[str, float] = {}
    missing: list[str] = []
    with library_threads(THREADS):
        for label, build in builders.items():
            start = time.perf_counter()
            try:
                calls[label] = build()
                rows[label] = _unit(calls[label]())  # which also warms it up
            except ImportError as error:
                missing.append(f"{label} ({error.name})")
            ready_after[label] = round(time.perf_counter() - start, 1)
            gc.collect()
            release_unused_memory()
        exact = rows["torch fp32"]
        cosines = {label: round(float((row * exact).sum(-1).min()), 5) for label, row in rows.items()}
        assert all(cosine > 0.99 for cosine in cosines.values()), cosines
        race.run(
            calls.pop(SUBJECT), calls, rounds=count, subject=SUBJECT, warmup=0,
            missing=tuple(missing),
            notes={
                "smallest cosine to torch fp32": cosines,
                "views a call": batch,
                "seconds to build and call once": ready_after,
            },
        )  # fmt: skip


def _onnxruntime(tower: torch.nn.Module, pixels: torch.Tensor, file: Path) -> Embed:
    import onnxruntime

    torch.backends.mha.set_fastpath_enabled(False)
    torch.onnx.export(tower, (pixels,), str(file), input_names=["pixels"], dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    file.unlink()
    feed = {"pixels": pixels.numpy()}
    return lambda: session.run(None, feed)[0]


def _compiled(tower: torch.nn.Module, pixels: torch.Tensor) -> Embed:
    compiled = torch.compile(tower)

    @torch.inference_mode()
    def call() -> np.ndarray:
        return compiled(pixels).numpy()

    return call


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
